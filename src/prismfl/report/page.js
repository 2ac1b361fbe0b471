"use strict";
for (const viewer of document.querySelectorAll(".viewer")) {
  const slider = viewer.querySelector("input");
  if (!slider) continue;
  const grids = [...viewer.querySelectorAll("img[data-told]")];
  const told = viewer.querySelector("output");
  const play = viewer.querySelector("button");
  let timer = 0;
  const show = () => {
    const now = Number(slider.value);
    grids.forEach((grid, index) => { grid.hidden = index !== now; });
    told.value = grids[now].dataset.told;
    slider.setAttribute("aria-valuetext", grids[now].dataset.told);
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  const step = () => {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) === grids.length - 1) stop();
  };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (Number(slider.value) === grids.length - 1) slider.value = 0;
    show();
    play.textContent = "Stop";
    timer = setInterval(step, 450);
  });
  viewer.querySelector(".controls").hidden = false;
  show();
}
