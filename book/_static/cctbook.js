// Formulas that are wider than the page scroll in their own box; the keyboard reaches it.
addEventListener("load", () =>
  window.MathJax?.startup?.promise.then(() => {
    for (const box of document.querySelectorAll('mjx-container[display="true"]')) box.tabIndex = 0;
  }));
