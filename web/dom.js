// Small helpers for making and updating elements. Text only ever goes in as text. Knows nothing about the pack.

/** An element with properties (`class`, `text`, `title`, `on…` listeners, attributes, `style` properties) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'class') made.className = value;
    else if (name === 'text') made.textContent = value;
    else if (name === 'style') for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'value') made.value = value;
    else made.setAttribute(name, value === true ? '' : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Sets an element's text, class or attribute only where it differs: an update that changes nothing costs nothing. */
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

/** Arrow keys, Home and End move the focus among `items()` (one tab stop for all of them); `moved(item)` follows. */
export function rovingFocus(container, items, moved = () => {}) {
  container.addEventListener('keydown', (event) => {
    const all = items();
    const now = all.indexOf(document.activeElement);
    const steps = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 };
    if (now < 0 || !(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation(); // the app's canvas listens to arrow keys as well
    const next = all[Math.min(all.length - 1, Math.max(0, steps[event.key]))];
    for (const one of all) one.tabIndex = one === next ? 0 : -1;
    next.focus();
    moved(next);
  });
}
