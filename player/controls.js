// The control bar of the player, its keys and pointer gestures.

/** Step of the arrow keys: of the volume, and in seconds. */
const VOLUME_STEP = 0.05;
const SEEK_STEP = 5;
/** The bar disappears if the pointer rests for this time, in milliseconds. */
const INACTIVE_AFTER = 3_000;

export class Controls {
  #player;
  #parts;
  #toLiveEdge;
  #pointerTimer = 0;

  /** Takes the player, its parts, and the function that seeks to the live edge. */
  constructor(player, parts, toLiveEdge) {
    [this.#player, this.#parts, this.#toLiveEdge] = [player, parts, toLiveEdge];
    this.#addButtonListeners();
    this.#addVideoListeners();
    player.addEventListener('keydown', (event) => this.#onKey(event));
    player.addEventListener('pointermove', () => {
      player.classList.remove('inactive');
      clearTimeout(this.#pointerTimer);
      this.#pointerTimer = setTimeout(() => player.classList.add('inactive'), INACTIVE_AFTER);
    });
    this.#updatePlay();
    this.updateMute();
    this.#updateCaptions();
  }

  #addButtonListeners() {
    const { start, play, mute, volume, statsToggle, fullscreen, stats, live, pip, captions, video } = this.#parts;
    start.addEventListener('click', () => {
      this.#player.play().catch(() => {});
      // The button disappears with its focus.
      this.#player.focus();
    });
    play.addEventListener('click', () => this.#togglePlay());
    mute.addEventListener('click', () => this.#toggleMute());
    volume.addEventListener('input', () => (video.volume = Number(volume.value)));
    statsToggle.addEventListener('click', () => {
      stats.hidden = !stats.hidden;
      statsToggle.setAttribute('aria-pressed', String(!stats.hidden));
    });
    captions.addEventListener('click', () => this.#toggleCaptions());
    live.addEventListener('click', () => this.#toLiveEdge());
    pip.hidden = !document.pictureInPictureEnabled;
    pip.addEventListener('click', () => this.#togglePictureInPicture());
    fullscreen.addEventListener('click', () => this.#toggleFullscreen());
  }

  #addVideoListeners() {
    const { video } = this.#parts;
    for (const event of ['play', 'pause', 'emptied']) this.#player.addEventListener(event, () => this.#updatePlay());
    // A new source takes events with it that were not sent yet.
    for (const event of ['volumechange', 'loadstart']) video.addEventListener(event, () => this.updateMute());
    for (const event of ['addtrack', 'removetrack', 'change']) {
      video.textTracks.addEventListener(event, () => this.#updateCaptions());
    }
    // A tap shows the bar instead.
    video.addEventListener('click', ({ pointerType }) => {
      if (this.#player.controls && (pointerType ?? 'mouse') === 'mouse') this.#togglePlay();
    });
    video.addEventListener('dblclick', () => this.#player.controls && this.#toggleFullscreen());
  }

  #onKey(event) {
    if (!this.#player.controls || event.ctrlKey || event.metaKey || event.altKey) return;
    // A focused control that uses keys itself has priority.
    const [inner] = event.composedPath();
    if (inner.matches?.('select, input')) return;
    const { play, mute, fullscreen, statsToggle, pip, captions } = this.#parts;
    const button = { k: play, m: mute, f: fullscreen, i: statsToggle, p: pip, c: captions }[event.key.toLowerCase()];
    if (button) return button.click();
    const isOnButton = inner.matches?.('button, a');
    const action = {
      ' ': isOnButton ? undefined : () => this.#togglePlay(),
      ArrowUp: () => this.#changeVolume(VOLUME_STEP),
      ArrowDown: () => this.#changeVolume(-VOLUME_STEP),
      ArrowLeft: () => this.#seekBy(-SEEK_STEP),
      ArrowRight: () => this.#seekBy(SEEK_STEP),
    }[event.key];
    if (!action) return;
    // The page would scroll.
    event.preventDefault();
    action();
  }

  #togglePlay() {
    const player = this.#player;
    if (!player.paused) return player.pause();
    // Playback resumes at the live edge.
    this.#toLiveEdge();
    player.play().catch(() => {});
  }

  #updatePlay() {
    const { bar, play } = this.#parts;
    const { paused } = this.#player;
    bar.classList.toggle('paused', paused);
    play.setAttribute('aria-label', paused ? 'Play' : 'Pause');
  }

  #toggleMute() {
    const { video } = this.#parts;
    video.muted = !video.muted;
    // Browsers pause what is unmuted without a gesture; this is one.
    this.#player.playVideo();
  }

  updateMute() {
    const { video, bar, mute, muteLabel, volume } = this.#parts;
    bar.classList.toggle('muted', video.muted);
    muteLabel.textContent = video.muted ? 'Unmute' : '';
    mute.setAttribute('aria-label', video.muted ? 'Unmute' : 'Mute');
    volume.value = video.volume;
  }

  #changeVolume(step) {
    const { video } = this.#parts;
    video.volume = Math.min(1, Math.max(0, video.volume + step));
  }

  /** Seeks within what HLS has; over WebRTC there is nothing to seek in. */
  #seekBy(seconds) {
    const { video } = this.#parts;
    const { seekable } = video;
    if (seekable.length === 0 || video.srcObject) return;
    const last = seekable.length - 1;
    video.currentTime = Math.min(seekable.end(last), Math.max(seekable.start(last), video.currentTime + seconds));
  }

  get #captionTracks() {
    return [...this.#parts.video.textTracks].filter(({ kind }) => kind === 'captions' || kind === 'subtitles');
  }

  #toggleCaptions() {
    const tracks = this.#captionTracks;
    const isShown = tracks.some(({ mode }) => mode === 'showing');
    tracks.forEach((track, index) => (track.mode = !isShown && index === 0 ? 'showing' : 'hidden'));
  }

  #updateCaptions() {
    const { captions } = this.#parts;
    const tracks = this.#captionTracks;
    captions.hidden = tracks.length === 0;
    captions.setAttribute('aria-pressed', String(tracks.some(({ mode }) => mode === 'showing')));
  }

  #togglePictureInPicture() {
    if (document.pictureInPictureElement) document.exitPictureInPicture();
    else this.#parts.video.requestPictureInPicture?.().catch(() => {});
  }

  #toggleFullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    // iPhones support full screen only for the video element.
    else if (this.#player.requestFullscreen) this.#player.requestFullscreen().catch(() => {});
    else this.#parts.video.webkitEnterFullscreen?.();
  }
}
