for (const slider of document.querySelectorAll(".compare input")) {
  const place = () =>
    slider.parentElement.style.setProperty("--at", `${slider.value}%`);
  slider.addEventListener("input", place);
  place(); // A browser may bring back where it was.
}
