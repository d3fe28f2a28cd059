// Formats quantities for display. GB are 10⁹ bytes, as in every text of the pack. Pure.

export const GB = 1e9;
export const UNKNOWN = '–';

/** Bytes as GB, or as MB below 0.1 GB; `UNKNOWN` for null. */
export function bytes(value) {
  if (!Number.isFinite(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size >= 0.0995 * GB) return `${(value / GB).toFixed(size >= 99.5 * GB ? 0 : size >= 9.95 * GB ? 1 : 2)} GB`;
  return `${(value / 1e6).toFixed(size !== 0 && size < 9.95e6 ? 1 : 0)} MB`;
}

export function rate(bytesPerSecond) {
  return Number.isFinite(bytesPerSecond) ? `${(bytesPerSecond / GB).toFixed(bytesPerSecond >= 9.95 * GB ? 1 : 2)} GB/s` : UNKNOWN;
}

/** `value` is in percent. */
export function percent(value) {
  if (!Number.isFinite(value)) return UNKNOWN;
  return `${value.toFixed(value !== 0 && Math.abs(value) < 9.95 ? 1 : 0)} %`;
}

export function duration(nanoseconds) {
  if (!Number.isFinite(nanoseconds)) return UNKNOWN;
  const milliseconds = nanoseconds / 1e6;
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${milliseconds.toFixed(milliseconds >= 9.95 ? 0 : 2)} ms`;
}

/** A setting's value as text: bytes as GB, `UNKNOWN` if it is left to the planner. */
export function settingValue(name, value) {
  if (value === null || value === undefined) return UNKNOWN;
  return name.endsWith('_bytes') && Number.isFinite(value) ? bytes(value) : String(value);
}
