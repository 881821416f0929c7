// The camera: frames to a callback, one at a time, and the rate at which they are answered.

const WINDOW_MS = 2000; // over which the rate is measured

/**
 * Shows the camera in `video` and calls `onFrame(bitmap)` with a frame as soon as the last one is answered.
 * onRate: frames/s, now and then. Returns a function that stops it. Throws an Error with a sentence.
 */
export async function startCamera(video, onFrame, onRate) {
  if (!navigator.mediaDevices) throw new Error("The camera needs https, or localhost.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    throw new Error(denied ? "The browser was not allowed to use the camera." : "There is no camera to use.");
  }
  video.srcObject = stream;
  await video.play();
  let running = true;
  const answered = [];
  (async () => {
    while (running) {
      await onFrame(await createImageBitmap(video));
      const now = performance.now();
      answered.push(now);
      while (answered[0] < now - WINDOW_MS) answered.shift();
      if (answered.length > 1) onRate((1000 * (answered.length - 1)) / (now - answered[0]));
      await new Promise(requestAnimationFrame);
    }
  })();
  return () => {
    running = false;
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
}
