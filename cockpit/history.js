/* The agent's samples as curves. Pure; the laws are virtksm/history/curves.py's: without samples there is no curve, and CPU
   time is the difference of two samples, at least a certain time apart, as the kernel counts it in steps of 10 ms. */

const GAP_S = 180;
const MAX_SAMPLES = 1000;

/* Name the columns of the table that `history` answers with. */
export function parseSamples(table) {
    return table.rows.slice(-MAX_SAMPLES).map(row => Object.fromEntries(table.columns.map((name, index) => [name, row[index]])));
}

/* A sample out of a status: the present moment, as long as the agent has not written it down. */
export function sampleOf(status, atS) {
    return { at_s: atS, saved_kib: status.now.saved_kib, ksmd_cpu_seconds: status.now.ksmd_cpu_seconds };
}

/* What is saved, as pieces of [time, KiB]. */
export function savedCurve(samples) {
    return pieces(samples.filter(one => one.saved_kib !== null))
            .map(piece => piece.map(one => [one.at_s, one.saved_kib]));
}

/* ksmd's share of a core in percent over `widthS` at a time, as pieces of [time, percent] with two ends a stretch. */
export function cpuCurve(samples, widthS) {
    const curve = pieces(samples.filter(one => one.ksmd_cpu_seconds !== null)).map(piece => cpuSteps(piece, widthS));
    return curve.filter(piece => piece.length > 0);
}

function cpuSteps(piece, widthS) {
    const steps = [];
    let first = piece[0];
    piece.forEach((sample, number) => {
        const tookS = sample.at_s - first.at_s;
        if (sample.ksmd_cpu_seconds < first.ksmd_cpu_seconds) { // counted again from 0 since a reboot
            first = sample;
        } else if (tookS >= widthS || (number === piece.length - 1 && tookS >= 1)) {
            const percent = 100 * (sample.ksmd_cpu_seconds - first.ksmd_cpu_seconds) / tookS;
            steps.push([first.at_s, percent], [sample.at_s, percent]);
            first = sample;
        }
    });
    return steps;
}

function pieces(samples) {
    const found = [];
    for (const sample of samples) {
        const piece = found[found.length - 1];
        const since = piece && sample.at_s - piece[piece.length - 1].at_s;
        if (piece && since > 0 && since <= GAP_S)
            piece.push(sample);
        else
            found.push([sample]);
    }
    return found;
}
