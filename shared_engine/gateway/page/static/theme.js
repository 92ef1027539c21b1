// Before anything is drawn, so that nothing flashes: a script of its own, not a module.
{
  const theme = localStorage.getItem("vllm-local theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
