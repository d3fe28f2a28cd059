// The pack's texts on the page, one table per language in words/. What the app translates itself (settings, commands,
// nodes) is in the pack's locales/ instead. A missing language or key falls back to English.

const LANGUAGES = ['en', 'zh', 'ja'];
const loaded = new Map();

/** The language to use for one of the app's locales: `zh` for `zh-TW`, `en` for an unknown one. */
export function languageFor(locale) {
  const base = String(locale).toLowerCase().split(/[-_]/)[0];
  return LANGUAGES.includes(base) ? base : 'en';
}

/** Returns the `speaker` of a locale's table; loads each table once. */
export async function wordsFor(locale) {
  const language = languageFor(locale);
  for (const name of new Set(['en', language])) {
    if (!loaded.has(name)) loaded.set(name, await (await fetch(new URL(`words/${name}.json`, import.meta.url))).json());
  }
  return speaker(loaded.get(language), loaded.get('en'));
}

/** Returns `say(key, values, unknown)`: the text of `key`, each `{name}` replaced from `values`; `unknown` if it has none. */
export function speaker(table, english = table) {
  return (key, values = {}, unknown = key) => {
    const text = table[key] ?? english[key];
    return text?.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole)) ?? unknown;
  };
}

/** What a sentence {code, values} of the server says, by `say`; `english` without one, or where a code in it is not known. */
export function sentence(say, data, english) {
  const values = Object.entries(data?.values ?? {}).map(([name, value]) => [name, typeof value === 'string' ? value : sentence(say, value, null)]);
  const isKnown = data && values.every(([, value]) => value !== null);
  return isKnown ? say(`why.${data.code}`, Object.fromEntries(values), english) : english;
}

/** The lines of notices, each with what to do; `english`: the same lines from the server. */
export function noticeLines(say, notices, english) {
  return (english ?? []).map((line, index) => {
    const notice = notices?.[index];
    return sentence(say, notice?.do ? { code: 'both', values: { first: notice, second: notice.do } } : notice, line);
  });
}
