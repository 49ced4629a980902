/* The findings of `virtksm doctor`: problems first, each with its remedy, and the rest folded away. */

import { element, setChildren, setText } from "./dom.js";

const TO_DO = ["FAIL", "WARN"];

/* `view` has the elements `summary`, `todo` and `rest`, two lists, and `fold`, the details element around the second. */
export function showFindings(view, findings, isRoot) {
    const urgent = TO_DO.flatMap(verdict => findings.filter(one => one.verdict === verdict));
    const rest = findings.filter(one => !TO_DO.includes(one.verdict));
    const result = urgent.length === 0
        ? "Nothing stands in the way of KSM on this host."
        : `${urgent.length} of ${findings.length} checks found something to do.`;
    setText(view.summary, isRoot ? result : `${result} They ran as you, without administrative access.`);
    setChildren(view.todo, ...urgent.map(itemOf));
    setChildren(view.rest, ...rest.map(itemOf));
    view.fold.hidden = rest.length === 0;
    setText(view.fold.querySelector("summary"), `${rest.length} checks with nothing to do`);
}

function itemOf(finding) {
    return element(
        "li", { class: "finding" },
        element("span", { class: `verdict ${finding.verdict.toLowerCase()}` }, finding.verdict),
        element("div", {},
                element("div", {}, element("strong", {}, `${finding.group}, ${finding.what}`), `: ${finding.detail}`),
                ...(finding.remedy ? [element("div", { class: "remedy" }, `→ ${finding.remedy}`)] : [])));
}
