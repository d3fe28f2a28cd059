// Formats quantities for display. GB are 10⁹ bytes, as in every text of the pack. Pure.

export const GB = 1e9;
export const UNKNOWN = '–';
const { MIN_VALUE } = Number;

/** A formatter by `steps`, [least size, unit, divisor, decimal places] from large to small; `UNKNOWN` for what is no number. */
const formatter = (...steps) => (value) => {
  if (!Number.isFinite(value)) return UNKNOWN;
  const [, unit, divisor, places] = steps.find(([least]) => Math.abs(value) >= least);
  return `${(value / divisor).toFixed(places)} ${unit}`;
};

export const bytes = formatter(
  [99.5 * GB, 'GB', GB, 0], [9.95 * GB, 'GB', GB, 1], [0.0995 * GB, 'GB', GB, 2],
  [9.95e6, 'MB', 1e6, 0], [MIN_VALUE, 'MB', 1e6, 1], [0, 'MB', 1e6, 0],
);
/** Of bytes per second. */
export const rate = formatter([9.95 * GB, 'GB/s', GB, 1], [0, 'GB/s', GB, 2]);
/** Of a value that is in percent already. */
export const percent = formatter([9.95, '%', 1, 0], [MIN_VALUE, '%', 1, 1], [0, '%', 1, 0]);
/** Of nanoseconds. */
export const duration = formatter([1e9, 's', 1e9, 2], [9.95e6, 'ms', 1e6, 0], [0, 'ms', 1e6, 2]);

/** A setting's value as text; `UNKNOWN` if it is left to the planner. */
export const settingValue = (name, value) => (name.endsWith('_bytes') ? bytes(value) : String(value ?? UNKNOWN));
