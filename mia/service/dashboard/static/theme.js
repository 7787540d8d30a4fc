// Before anything is drawn: what the reader chose, if he did. Else the system says.
(() => {
  try {
    const chosen = localStorage.getItem("mia-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // No storage: the system says.
  }
})();
