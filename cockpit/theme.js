/* Light or dark as the shell says: its choice is in localStorage, each change an event, "auto" the browser's.
   Loaded before the page is drawn; base1 offers packages nothing for it. */

"use strict";

(function () {
    const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

    function follow(style) {
        const wanted = style || localStorage.getItem("shell:style") || "auto";
        const isDark = wanted === "dark" || (wanted === "auto" && prefersDark.matches);
        document.documentElement.classList.toggle("pf-theme-dark", isDark);
    }

    window.addEventListener("storage", event => event.key === "shell:style" && follow());
    window.addEventListener("cockpit-style", event => follow(event.detail && event.detail.style));
    prefersDark.addEventListener("change", () => follow());
    follow();
})();
