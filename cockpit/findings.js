/* The findings of `virtksm doctor`: problems first, each with its remedy, and the rest folded away. */

import { element, setChildren, setText } from "./dom.js";

const TO_DO = ["FAIL", "WARN"];

/* `view` has the elements `summary`, `todo` and `rest`, two lists, and `fold`, the details element around the second. */
export function showFindings(view, findings, isRoot) {
    const urgent = TO_DO.flatMap(verdict => findings.filter(one => one.verdict === verdict));
    const rest = findings.filter(one => !TO_DO.includes(one.verdict));
    setText(view.summary, counted(findings) + (isRoot ? "" : "; they ran as you, without administrative access"));
    setChildren(view.todo, ...urgent.map(itemOf));
    setChildren(view.rest, ...rest.map(itemOf));
    view.fold.hidden = rest.length === 0;
    setText(view.fold.querySelector("summary"), `${rest.length} checks with nothing to do`);
}

/* The summary of `virtksm doctor`. */
function counted(findings) {
    const words = { PASS: ["check passed", "checks passed"], WARN: ["warning", "warnings"],
                    FAIL: ["failure", "failures"], INFO: ["not judged", "not judged"] };
    return Object.entries(words)
            .map(([verdict, [one, more]]) => [findings.filter(found => found.verdict === verdict).length, one, more])
            .filter(([count]) => count > 0)
            .map(([count, one, more]) => `${count} ${count === 1 ? one : more}`)
            .join(", ");
}

function itemOf(finding) {
    return element(
        "li", { class: "finding" },
        element("span", { class: `verdict ${finding.verdict.toLowerCase()}` }, finding.verdict),
        element("div", {},
                element("div", {}, element("strong", {}, `${finding.group}: ${finding.what}`), `: ${finding.detail}`),
                ...(finding.remedy ? [element("div", { class: "remedy" }, `→ ${finding.remedy}`)] : [])));
}
