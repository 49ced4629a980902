/* Elements out of code. Every text goes through textContent, so nothing that a guest is named is ever markup. */

import { printable } from "./units.js";

export const byId = id => document.getElementById(id);

/* Return a new element with attributes (null leaves one out) and children: elements, or texts made printable. */
export function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    setAttributes(made, attributes);
    made.append(...children.map(asNode));
    return made;
}

export function svgElement(tag, attributes = {}, text = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    setAttributes(made, attributes);
    if (text !== null)
        made.textContent = printable(text);
    return made;
}

/* Set a text where it has changed: an unchanged one must not be read out again. */
export function setText(target, text) {
    const shown = printable(text);
    if (target.textContent !== shown)
        target.textContent = shown;
}

/* Exchange the children where they would look different; selections and reading positions stay otherwise. */
export function setChildren(target, ...children) {
    const [fresh, shown] = [children.map(asNode), target.childNodes];
    if (fresh.length !== shown.length || fresh.some((child, number) => !child.isEqualNode(shown[number])))
        target.replaceChildren(...fresh);
}

function asNode(child) {
    return child instanceof Node ? child : document.createTextNode(printable(child));
}

function setAttributes(target, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value !== null)
            target.setAttribute(name, value);
    }
}
