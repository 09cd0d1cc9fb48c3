// What keeps a page from being read, each offence in words; `smallest` is a font size in CSS pixels.
smallest => {
  const found = [];
  const say = (what, element) => found.push(what + ": " + (element.textContent || "").trim().slice(0, 60));
  const root = document.documentElement, width = root.clientWidth;
  if (root.scrollWidth > width) found.push(`the page is ${root.scrollWidth} wide in a window of ${width}`);
  for (const element of document.querySelectorAll("h1, h2, h3, p, li, figure, .scroll, .verdict, dd, summary")) {
    if (element.closest("details:not([open]) > :not(summary)")) continue;
    const box = element.getBoundingClientRect();
    if (box.left < -1 || box.right > width + 1) say("beyond the window", element);
  }
  for (const table of document.querySelectorAll("table")) {
    const around = table.parentElement, style = getComputedStyle(around);
    if (!around.classList.contains("scroll") || style.overflowX !== "auto") say("no container that scrolls", table);
    if (around.tabIndex !== 0) say("a container that the keyboard cannot reach", table);
    const right = Math.max(...[...table.querySelectorAll("th, td")].map(cell => cell.getBoundingClientRect().right));
    const left = around.getBoundingClientRect().left;
    if (right - left > around.scrollWidth + 2) say("columns that cannot be scrolled to", table);
    for (const cell of table.querySelectorAll("th, td, caption span")) {
      const cut = getComputedStyle(cell).overflowX !== "visible";
      if (cut && cell.scrollWidth > cell.clientWidth + 1) say("clipped", cell);
      const inner = document.createRange();
      inner.selectNodeContents(cell);
      const box = cell.getBoundingClientRect(), text = inner.getBoundingClientRect();
      if (text.width > 0 && (text.left < box.left - 1 || text.right > box.right + 1)) say("text beyond its cell", cell);
    }
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, svg = element.closest("svg");
    if (!node.nodeValue.trim() || element.closest("title, style, script")) continue;
    let size = parseFloat(getComputedStyle(element).fontSize);
    if (svg) size *= svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    if (svg && !svg.getBoundingClientRect().width) continue;  // in a closed part
    if (size < smallest) say(`text of ${size} pixels`, element);
  }
  for (const svg of document.querySelectorAll("figure svg")) {
    if (svg.closest("details:not([open])")) continue;
    const box = svg.getBoundingClientRect();
    if (box.width < 250 || box.height < 120) say(`a plot of ${box.width} by ${box.height}`, svg);
    if (!svg.querySelector("path") || !svg.getAttribute("aria-label")) say("a plot without lines or label", svg);
    const texts = [...svg.querySelectorAll("text")].map(each => [each, each.getBoundingClientRect()]);
    if (texts.length < 4) say("a plot without axes", svg);
    for (const [text, own] of texts) {
      if (own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1 || own.top < box.top - 1)
        say(`a label beyond its plot, ${svg.getAttribute("aria-label")}`, text);
      for (const [other, its] of texts) {
        const across = Math.min(own.right, its.right) - Math.max(own.left, its.left);
        const down = Math.min(own.bottom, its.bottom) - Math.max(own.top, its.top);
        if (text !== other && across > 1 && down > 4) say(`on top of the label ${other.textContent}`, text);
      }
    }
  }
  return found;
}
