/* The table of guests, out of `virtksm guests --json`; its columns sort. */

import { element, setChildren } from "./dom.js";
import { formatBytes } from "./units.js";

const COLUMNS = [
    { key: "name", label: "Guest", text: guest => guest.name },
    { key: "memory_bytes", label: "Memory" },
    { key: "rss_bytes", label: "Resident" },
    { key: "merged_bytes", label: "Merged" },
    { key: "saved_bytes", label: "Saved" },
    { key: "cost_bytes", label: "Cost" },
    { key: "profit_bytes", label: "Profit" },
    { key: "can_merge", label: "Can merge", text: guest => guest.can_merge_text },
];

export class GuestTable {
    constructor(table) {
        this.table = table;
        this.key = "saved_bytes";
        this.isAscending = false;
        table.tHead.replaceChildren(element("tr", { role: "row" }, ...COLUMNS.map(column => this.headerOf(column))));
        this.show(null);
    }

    headerOf(column) {
        const button = element("button", { type: "button", class: "sort" }, column.label);
        button.addEventListener("click", () => this.sortBy(column));
        const header = element("th", { role: "columnheader", scope: "col", class: column.text ? null : "number" }, button);
        header.dataset.key = column.key;
        return header;
    }

    sortBy(column) {
        this.isAscending = this.key === column.key ? !this.isAscending : Boolean(column.text);
        this.key = column.key;
        this.draw();
    }

    /* Show guests, or null where they are not known. */
    show(guests) {
        this.isKnown = guests !== null;
        this.guests = guests || [];
        this.draw();
    }

    draw() {
        for (const header of this.table.tHead.rows[0].cells) {
            if (header.dataset.key === this.key)
                header.setAttribute("aria-sort", this.isAscending ? "ascending" : "descending");
            else
                header.removeAttribute("aria-sort");
        }
        const rows = [...this.guests].sort((one, other) => this.compare(one, other)).map(rowOf);
        setChildren(this.table.tBodies[0], ...(rows.length ? rows : [emptyRow(this.isKnown)]));
    }

    /* What is unknown comes last, either way. */
    compare(one, other) {
        const [left, right] = [one[this.key], other[this.key]];
        if (left === null || right === null)
            return (left === null) - (right === null) || byName(one, other);
        const order = this.key === "name" ? byName(one, other) : Number(left) - Number(right);
        return (this.isAscending ? order : -order) || byName(one, other);
    }
}

function byName(one, other) {
    return one.name.localeCompare(other.name, undefined, { numeric: true });
}

function rowOf(guest) {
    return element("tr", { role: "row" }, ...COLUMNS.map(column => {
        const text = column.text ? column.text(guest) : formatBytes(guest[column.key]);
        if (column.key === "name")
            return element("th", { role: "rowheader", scope: "row", "data-label": column.label }, text);
        return element("td", { role: "cell", class: column.text ? null : "number", "data-label": column.label }, text);
    }));
}

function emptyRow(isKnown) {
    return element("tr", { role: "row", class: "empty" },
                   element("td", { role: "cell", colspan: COLUMNS.length }, isKnown ? "No guest runs." : "Not known."));
}
