// The frame: buttons that copy, and the mark of the section that is read. `data-copy` is what a button copies.
(() => {
  "use strict";
  const said = document.getElementById("said");

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // No clipboard on file:// in some browsers: the old way needs a selection.
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "sr";
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    await copy(button.dataset.copy);
    button.focus();
    said.textContent = `copied: ${button.dataset.copy}`;
    const label = button.dataset.label || button.textContent;
    button.style.minWidth = `${button.offsetWidth}px`;
    button.dataset.label = label;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1200);
  });

  const links = [...document.querySelectorAll("nav.sections a")];
  const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
  function mark() {
    const line = window.innerHeight / 3;
    let current = 0;
    sections.forEach((section, place) => { if (section && section.getBoundingClientRect().top < line) current = place; });
    links.forEach((link, place) => (place === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  }
  if (links.length) {
    document.addEventListener("scroll", mark, { passive: true });
    mark();
  }
})();
