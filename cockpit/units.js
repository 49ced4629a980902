/* Quantities and texts from outside as text for people, as the command line words them (virtksm/text.py). */

/* What a pass has come to where all is well, as `virtksm status` says it. */
export const OUTCOMES = { unchanged: "no change", applied: "settings changed", observed: "nothing is ever set" };

export function formatBytes(bytes) {
    if (bytes === null || bytes === undefined)
        return "–";
    const mib = bytes / 1024 / 1024;
    return mib < 1024 ? `${oneDecimal(mib)} MiB` : `${oneDecimal(mib / 1024)} GiB`;
}

/* Between two that are equally near, Python takes the even one and JavaScript the larger: that differs for x.25 alone. */
export function oneDecimal(value) {
    const isBetween = Math.abs(value) % 1 === 0.25;
    return (isBetween ? value - 0.05 * Math.sign(value) : value).toFixed(1);
}

export function formatPercent(percent) {
    return percent === null || percent === undefined ? "unknown" : `${oneDecimal(percent)} %`;
}

export function formatDuration(seconds) {
    if (seconds < 100)
        return `${seconds.toFixed(0)} s`;
    return seconds < 7200 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/* Unix time as the browser's local time, with the day where it is not today. */
export function formatTime(atS, nowMs = Date.now()) {
    const at = new Date(atS * 1000);
    const time = at.toLocaleTimeString("en-GB");
    if (at.toDateString() === new Date(nowMs).toDateString())
        return time;
    return `${at.getFullYear()}-${twoDigits(at.getMonth() + 1)}-${twoDigits(at.getDate())} ${time}`;
}

function twoDigits(number) {
    return String(number).padStart(2, "0");
}

/* Escape what is not printable: controls, line ends, bidirectional overrides, which could make a guest's name look like
   another's. It is no HTML: texts reach the page through textContent alone. */
export function printable(text) {
    return String(text).slice(0, MAX_CHARACTERS).replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, escape);
}

const MAX_CHARACTERS = 10000;
const SHORT = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

function escape(one) {
    const [code, hex] = [one.codePointAt(0), one.codePointAt(0).toString(16)];
    if (code < 0x100)
        return SHORT[one] || `\\x${hex.padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
}
