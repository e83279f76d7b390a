// Finds what is wrong in the layout of a page: what sticks out, is clipped, or lies over something else.

/** Runs in the page. Returns a text for each fault. */
function findFaults() {
  const faults = [];
  const describe = (element) => {
    const text = (element.getAttribute('aria-label') || element.textContent || '').trim().replace(/\s+/g, ' ').slice(0, 40);
    return `${element.localName}${element.id && `#${element.id}`}${[...element.classList].map((name) => `.${name}`).join('')} "${text}"`;
  };
  const all = [];
  const collect = (root) => {
    for (const element of root.querySelectorAll('*')) {
      all.push(element);
      if (element.shadowRoot) collect(element.shadowRoot);
    }
  };
  collect(document);
  const parentOf = (element) => element.parentElement ?? element.getRootNode().host ?? null;
  const hasAncestor = (element, holds) => {
    for (let at = parentOf(element); at; at = parentOf(at)) if (holds(at)) return true;
    return false;
  };
  // Asked of each ancestor of each element.
  const scrolled = new Map();
  const isScrolled = (element) => {
    if (!scrolled.has(element)) {
      const { overflowX, overflowY } = getComputedStyle(element);
      scrolled.set(element, [overflowX, overflowY].some((overflow) => ['auto', 'scroll'].includes(overflow)));
    }
    return scrolled.get(element);
  };
  const isShown = (element) =>
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !hasAncestor(element, (at) => at.localName === 'svg')
    && !element.matches('.hidden, .segments input, option, br, script, style');

  if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} px wide`);
  const shown = all.filter(isShown);
  for (const element of shown) {
    const { left, right, width, height } = element.getBoundingClientRect();
    if (width === 0 || height === 0) continue;
    const inScroller = hasAncestor(element, (at) => isScrolled(at) && at !== document.documentElement && at !== document.body);
    if (!inScroller && (left < -1 || right > innerWidth + 1)) faults.push(`sticks out: ${describe(element)} from ${left} to ${right}`);
    // Text that is cut off, unless the style says how.
    const { overflowX, textOverflow } = getComputedStyle(element);
    const hasText = [...element.childNodes].some(({ nodeType, data }) => nodeType === Node.TEXT_NODE && data.trim());
    const isCut = element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0;
    if (hasText && isCut && overflowX !== 'auto' && textOverflow !== 'ellipsis' && getComputedStyle(element).display !== 'inline') {
      faults.push(`clipped: ${describe(element)} needs ${element.scrollWidth} of ${element.clientWidth} px`);
    }
  }
  /** What of an element is not cut off by what it scrolls in. */
  const visibleRect = (element) => {
    let { left, right, top, bottom } = element.getBoundingClientRect();
    hasAncestor(element, (at) => {
      if (isScrolled(at)) {
        const clip = at.getBoundingClientRect();
        [left, right] = [Math.max(left, clip.left), Math.min(right, clip.right)];
        [top, bottom] = [Math.max(top, clip.top), Math.min(bottom, clip.bottom)];
      }
      return false;
    });
    return { left, right, top, bottom };
  };
  const controls = shown.filter((element) => element.matches('a, button, input, select'))
    .map((element) => ({ element, rect: visibleRect(element) }));
  for (const [index, one] of controls.entries()) {
    for (const two of controls.slice(index + 1)) {
      const x = Math.min(one.rect.right, two.rect.right) - Math.max(one.rect.left, two.rect.left);
      const y = Math.min(one.rect.bottom, two.rect.bottom) - Math.max(one.rect.top, two.rect.top);
      if (x <= 1 || y <= 1 || one.element.contains(two.element) || two.element.contains(one.element)) continue;
      faults.push(`overlap: ${describe(one.element)} and ${describe(two.element)}`);
    }
  }
  return faults;
}

export const layoutFaults = (page) => page.evaluate(findFaults);
