// Boxes that scroll sideways are reached by the keyboard: code, tables, and formulas once MathJax has drawn them.
function reachable() {
  for (const box of document.querySelectorAll("pre, .text_html, .pst-scrollable-table-container, mjx-container"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
addEventListener("resize", reachable);
addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reachable));
// The theme's button that opens a part of the menu has a picture and no name.
addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("nav summary"))
    button.ariaLabel = `Pages of ${button.closest("li").firstElementChild.textContent.trim()}`;
  // A fold says in words what it holds; MyST-NB names all of them alike for those who hear a page read.
  for (const fold of document.querySelectorAll("details.hide > summary")) fold.removeAttribute("aria-label");
});
