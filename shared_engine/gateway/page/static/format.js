/** Numbers as people read them. */

export function bytes(count) {
  if (count === null || count === undefined) return "";
  const gib = count / 2 ** 30;
  if (gib >= 100) return `${Math.round(gib)} GiB`;
  if (gib >= 1) return `${gib.toFixed(1)} GiB`;
  return `${Math.round(count / 2 ** 20)} MiB`;
}

/** 8192 is "8K": contexts are powers of two, or said in thousands. */
export function context(tokens) {
  if (!tokens) return "";
  if (tokens % 1024 === 0) return `${tokens / 1024}K`;
  return tokens >= 1000 ? `${Math.round(tokens / 1000)}K` : String(tokens);
}

export function duration(seconds) {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** Of something that is to come: not shown in tenths. */
export function until(seconds) {
  return seconds < 60 ? `${Math.max(0, Math.ceil(seconds))} s` : duration(seconds);
}

export function rate(perSecond) {
  if (!perSecond) return "0";
  return perSecond < 10 ? perSecond.toFixed(1) : String(Math.round(perSecond));
}

export function number(count) {
  return count.toLocaleString("en-US");
}

export function plural(count, word) {
  return `${number(count)} ${word}${count === 1 ? "" : "s"}`;
}
