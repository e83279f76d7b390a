// The shadow tree of the player element: markup and style sheet.

export const HTML = `
  <video part="video" playsinline></video>
  <img class="poster" part="poster" alt="" hidden>
  <canvas class="last-frame" hidden></canvas>
  <button class="start" part="start-button" type="button" aria-label="Play">
    <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 4.5v15l12-7.5z"/></svg></button>
  <div class="overlay" part="overlay" role="status" aria-live="polite"><p class="title"></p><p class="text"></p>
    <button class="retry" type="button" hidden>Try again</button></div>
  <p class="hint" role="status" hidden></p>
  <p class="notice" role="status"></p>
  <div class="stats" part="stats" hidden><dl></dl><button type="button" class="copy-stats">Copy</button></div>
  <div class="bar" part="controls">
    <button class="play" type="button" aria-label="Pause" aria-keyshortcuts="k Space">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path class="play-icon" d="M7 4.5v15l12-7.5z"/>
        <path class="pause-icon" d="M8 5v14m8-14v14"/></svg></button>
    <button class="live" type="button" title="Go to the live edge"><i></i><span>Live</span></button>
    <span class="transport" hidden></span>
    <span class="spacer"></span>
    <button class="mute" type="button" aria-keyshortcuts="m">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 9.5v5h3.5L12 19V5L7.5 9.5z"/>
        <path class="on" d="M15.5 8.5a5 5 0 0 1 0 7M18 6a8.5 8.5 0 0 1 0 12"/>
        <path class="off" d="M16 9.5l5 5m0-5l-5 5"/></svg><span></span></button>
    <input class="volume" type="range" min="0" max="1" step="0.05" value="1" aria-label="Volume">
    <select class="quality" aria-label="Video quality" hidden></select>
    <button class="captions" type="button" aria-label="Captions" aria-keyshortcuts="c" aria-pressed="false" hidden>
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M3 5h18v14H3zm7 5.5a2.2 2.2 0 1 0 0 3m7-3a2.2 2.2 0 1 0 0 3"/></svg></button>
    <button class="pip" type="button" aria-label="Picture in picture" aria-keyshortcuts="p">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M3 5h18v14H3zm9 7h7v5h-7z"/></svg></button>
    <button class="stats-toggle" type="button" aria-label="Statistics" aria-keyshortcuts="i" aria-pressed="false">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 19v-6m7 6V5m7 14v-9"/></svg></button>
    <button class="fullscreen" type="button" aria-label="Full screen" aria-keyshortcuts="f">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 9V4h5m6 0h5v5m0 6v5h-5m-6 0H4v-5"/></svg></button>
  </div>`;

export const CSS = `
  :host { display: block; position: relative; aspect-ratio: 16 / 9; overflow: hidden; border-radius: 12px;
    background: #0b1114; color: #f4f7f7; font: 15px/1.45 system-ui, sans-serif; }
  :host(:fullscreen) { border-radius: 0; }
  [hidden] { display: none !important; }
  video, .last-frame { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
  .poster { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
  video.has-frame + .poster { display: none; }
  .last-frame { background: #0b1114; }
  :host(:focus-visible) { outline: 3px solid #0f766e; outline-offset: 2px; }
  .start { display: none; position: absolute; inset: 0; margin: auto; width: 84px; height: 84px; padding: 0; justify-content: center;
    border-radius: 50%; background: #0b1114cc; } .start svg { width: 38px; height: 38px; }
  .start:hover { background: #0b1114; }
  :host([controls][data-state=idle][src]) .start { display: flex; }
  :host(:not([controls])) .bar, :host([data-state=idle]) .bar { display: none; }
  video { opacity: 0; transition: opacity .4s; }
  video.has-frame { opacity: 1; }
  .overlay { position: absolute; inset: 0; display: grid; place-content: center; justify-items: center; gap: 6px;
    padding: 24px; text-align: center; background: #0b1114b3; opacity: 0; visibility: hidden;
    transition: opacity .4s, visibility .4s; }
  .overlay.shown { opacity: 1; visibility: visible; }
  .overlay p { margin: 0; max-width: 34em; text-wrap: balance; }
  .overlay .title { font-size: 1.2em; font-weight: 600; }
  .overlay .text { color: #b9c6c8; }
  .retry { margin-top: 10px; }
  .hint { position: absolute; top: 14px; left: 14px; margin: 0; padding: 4px 12px; border-radius: 15px;
    max-width: calc(100% - 28px); background: #0b1114cc; color: #dbe5e6; font-size: .9em; }
  .hint.middle { inset: 50% auto auto 50%; width: max-content; transform: translate(-50%, -50%); text-align: center;
    text-wrap: balance; font-size: 1em; }
  .hint.replaced { display: none; }
  .notice { position: absolute; top: 14px; left: 14px; margin: 0; padding: 4px 12px; border-radius: 15px;
    box-sizing: border-box; max-width: calc(100% - 28px); background: #0b1114cc; color: #dbe5e6; font-size: .85em; pointer-events: none; }
  .notice:empty { padding: 0; }
  .overlay.shown ~ .notice { visibility: hidden; }
  .stats { position: absolute; top: 14px; right: 14px; box-sizing: border-box; padding: 10px 14px; border-radius: 8px; max-height: calc(100% - 72px);
    overflow-y: auto; background: #0b1114cc; font-size: .85em; font-variant-numeric: tabular-nums; }
  .stats dl { display: grid; grid-template-columns: auto auto; gap: 2px 14px; margin: 0; }
  .copy-stats { height: 28px; margin: 6px 0 0 -9px; } button[aria-pressed=true] { background: #ffffff24; }
  .stats dt { color: #9fb0b3; } .stats dd { margin: 0; text-align: right; }
  .bar { position: absolute; inset: auto 0 0; display: flex; align-items: center; gap: 6px; padding: 28px 12px 10px;
    background: linear-gradient(#0b111400, #0b1114cc); opacity: 0; transition: opacity .3s; }
  :host(:hover) .bar, :host(:focus-within) .bar, .bar.muted { opacity: 1; }
  .overlay.shown ~ .bar { opacity: 0 !important; visibility: hidden; }
  :host(.inactive) .bar:not(.muted, :focus-within) { opacity: 0; } :host(.inactive) { cursor: none; }
  .spacer { flex: 1; }
  :host(:not([data-state=playing])) .live, .bar.paused .live { display: none; }
  .live, .transport { display: inline-flex; align-items: center; gap: 7px; font-size: .85em; letter-spacing: .02em; }
  .transport { display: block; min-width: 0; color: #b9c6c8; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
  .bar > :not(.transport) { flex-shrink: 0; }
  .live i { width: 8px; height: 8px; border-radius: 50%; background: #ff5d5d; }
  button { display: inline-flex; align-items: center; gap: 8px; height: 38px; padding: 0 9px; border: 0;
    border-radius: 8px; background: transparent; color: inherit; font: inherit; cursor: pointer; }
  button:hover { background: #ffffff24; }
  .retry, .bar.muted .mute { padding: 0 14px; background: #f4f7f7; color: #10181b; font-weight: 600; }
  .retry:hover, .bar.muted .mute:hover { background: #fff; }
  select { height: 32px; padding: 0 6px; border: 0; border-radius: 8px; background: #ffffff24; color: inherit;
    font: inherit; font-size: .9em; } option { color: #10181b; }
  button:focus-visible, input:focus-visible, select:focus-visible { outline: 2px solid #7fd6d0; outline-offset: 2px; }
  svg { width: 20px; height: 20px; fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linecap: round;
    stroke-linejoin: round; }
  .bar.paused .pause-icon, .bar:not(.paused) .play-icon, .mute span:empty, .bar.muted .on, .bar:not(.muted) .off, .bar.muted .volume { display: none; }
  .volume { width: 84px; accent-color: #f4f7f7; }
  @media (max-width: 460px) {
    .overlay { padding: 8px 14px; gap: 2px; font-size: .88em; } .volume, .pip { display: none; }
    .stats { top: 8px; right: 8px; padding: 6px 10px; font-size: .72em; line-height: 1.25; max-height: calc(100% - 66px); }
    .stats dl { gap: 0 10px; } .copy-stats { height: 22px; margin-top: 2px; } .notice { font-size: .8em; }
    .notice:has(~ .stats:not([hidden])) { max-width: calc(50% - 50px); }
    .bar { gap: 0; padding-inline: 6px; } .live { margin-right: 4px; } button { padding: 0 7px; }
    .bar.muted .mute { padding: 0 10px; font-size: .9em; } select { max-width: 112px; margin-inline: 6px 2px; font-size: .8em; }
    .live:has(~ .quality:not([hidden])) span { position: absolute; width: 1px; overflow: hidden; clip-path: inset(50%); }
  }
  @media (max-width: 360px) { .transport { display: none; } .notice:has(~ .stats:not([hidden])) { visibility: hidden; } .bar.muted .mute span { display: none; } select { max-width: 96px; } }
  @media (prefers-reduced-motion: reduce) { * { transition: none !important; } }`;
