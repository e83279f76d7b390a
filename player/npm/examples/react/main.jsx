// The player in an application with React 19, which sets properties of custom elements and listens to their events.

import { useRef, useState } from 'react';
import { createRoot } from 'react-dom/client';
import 'millstream-player';

function Stream({ src }) {
  const player = useRef(null);
  const [state, setState] = useState('idle');
  const [paused, setPaused] = useState(true);
  return (
    <>
      <millstream-player
        ref={player}
        src={src}
        autoplay
        muted
        controls
        onstatechange={({ detail }) => setState(detail.state)}
        onplay={() => setPaused(false)}
        onpause={() => setPaused(true)}
      />
      <p id="state">{state}</p>
      <button onClick={() => (paused ? player.current.play() : player.current.pause())}>{paused ? 'Play' : 'Pause'}</button>
    </>
  );
}

const { gateway, stream } = document.body.dataset;
createRoot(document.getElementById('root')).render(<Stream src={`${gateway}/whep/${stream}`} />);
