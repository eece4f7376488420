// The step strip: one slider for the pictures of all prompts. Without scripts the pictures stand in a row.
(() => {
  "use strict";
  const PAUSE = 800; // milliseconds that a step is shown while it plays

  function start(strip) {
    const [bar, range, play, output] = [".stepper", "input", "[data-play]", "output"].map((one) => strip.querySelector(one));
    const films = [...strip.querySelectorAll("[data-film]")].map((film) => [...film.children]);
    const titles = films[0].map((item) => item.dataset.title);
    let timer = 0;

    function show(place) {
      for (const film of films) film.forEach((item, index) => item.toggleAttribute("data-now", index === place));
      range.value = place;
      range.setAttribute("aria-valuetext", titles[place]);
      output.textContent = titles[place];
    }

    function stop() {
      clearInterval(timer);
      timer = 0;
      play.setAttribute("aria-pressed", "false");
      play.textContent = "Play";
    }

    function run() {
      play.setAttribute("aria-pressed", "true");
      play.textContent = "Stop";
      timer = setInterval(() => show((Number(range.value) + 1) % titles.length), PAUSE);
    }

    range.addEventListener("input", () => { stop(); show(Number(range.value)); });
    play.addEventListener("click", () => (timer ? stop() : run()));
    // Who wants less motion moves the slider.
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    const heed = () => { if (still.matches) stop(); play.hidden = still.matches; };
    still.addEventListener("change", heed);
    heed();
    strip.classList.add("stepping");
    bar.hidden = false;
    show(titles.length - 1);
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-stepper]").forEach(start));
})();
