// The pack's own words on the page, one table a language in words/. What the app translates itself (settings, commands,
// nodes) is in the pack's locales/ instead. English stands in for a language or a key that is missing.

const LANGUAGES = ['en', 'zh', 'ja'];
const loaded = new Map();

const load = async (language) => (await fetch(new URL(`words/${language}.json`, import.meta.url))).json();

/** The language of ours that serves the app's locale best: `zh-TW` is served by `zh`, anything unknown by `en`. */
export function languageFor(locale) {
  const base = String(locale).toLowerCase().split(/[-_]/)[0];
  return LANGUAGES.includes(base) ? base : 'en';
}

/** `say(key, values)`: the text of `key`, with `{name}` replaced from `values`. Loads each table once. */
export async function wordsFor(locale) {
  const language = languageFor(locale);
  for (const one of new Set(['en', language])) {
    if (!loaded.has(one)) loaded.set(one, await load(one));
  }
  return speaker(loaded.get(language), loaded.get('en'));
}

export function speaker(table, english = table) {
  return (key, values = {}) => {
    const text = table[key] ?? english[key] ?? key;
    return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
  };
}
