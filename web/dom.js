// Helpers that create and update elements. Text is never parsed as HTML. Knows nothing about the pack.

/** Creates an element. `properties`: `class`, `text`, `value`, `style` (an object), `on…` listeners; the rest are attributes. */
export function element(tag, properties = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'class') created.className = value;
    else if (name === 'text') created.textContent = value;
    else if (name === 'style') for (const [key, text] of Object.entries(value)) created.style.setProperty(key, text);
    else if (name.startsWith('on')) created.addEventListener(name.slice(2), value);
    else if (name === 'value') created.value = value;
    else created.setAttribute(name, value === true ? '' : String(value));
  }
  created.append(...children.filter((child) => child !== null && child !== undefined));
  return created;
}

/** An entry of a legend: a swatch of the class `swatch`, then `content`. */
export const legendKey = (swatch, ...content) => element('span', { class: 'lwo-key' }, element('i', { class: `lwo-swatch ${swatch}` }), ...content);

/** A button with the text `text`. `properties`: as in `element`; a `class` stands beside the one of all buttons. */
export const button = (text, { class: extra, ...properties }) =>
  element('button', { class: extra ? `lwo-button ${extra}` : 'lwo-button', type: 'button', text, ...properties });

// These write to the page only if the value differs: live updates call them for every element.
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function setClass(target, name) {
  if (target.className !== name) target.className = name;
}

export function setAttribute(target, name, value) {
  if (value === null) target.removeAttribute(name);
  else if (target.getAttribute(name) !== value) target.setAttribute(name, value);
}

/** Arrow keys, Home and End move the focus among `items()`, which are one tab stop; then `moved(item)` is called. */
export function rovingFocus(container, items, moved = () => {}) {
  container.addEventListener('keydown', (event) => {
    const all = items();
    const now = all.indexOf(document.activeElement);
    const steps = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 };
    if (now < 0 || !(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation(); // the app's canvas listens to arrow keys as well
    const next = all[Math.min(all.length - 1, Math.max(0, steps[event.key]))];
    for (const item of all) item.tabIndex = item === next ? 0 : -1;
    next.focus();
    moved(next);
  });
}
