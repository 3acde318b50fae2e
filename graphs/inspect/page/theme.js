// Before anything is drawn: scripts run, and a theme may be asked for by the address (#dark, #light) or the button.
document.documentElement.classList.add("scripted");
if (location.hash === "#dark" || location.hash === "#light")
  document.documentElement.dataset.theme = location.hash.slice(1);
document.addEventListener("click", (event) => {
  if (event.target.id !== "theme") return;
  const asked = document.documentElement.dataset.theme, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = (asked || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
