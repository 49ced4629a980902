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

/* Set a text where it has changed: what has not must not be read out again. */
export function setText(target, text) {
    const shown = printable(text);
    if (target.textContent !== shown)
        target.textContent = shown;
}

/* Exchange the children where they would look different; focus and reading position stay otherwise. */
export function setChildren(target, ...children) {
    const fresh = document.createElement(target.tagName);
    fresh.append(...children.map(asNode));
    if (fresh.innerHTML !== target.innerHTML)
        target.replaceChildren(...fresh.childNodes);
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
