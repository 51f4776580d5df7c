// Loaded before the page is drawn, so that the chosen theme never flashes the other one.
const chosen = localStorage.getItem("slipway-theme");
if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
