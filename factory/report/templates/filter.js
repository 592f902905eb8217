(() => {
  "use strict";
  const select = document.getElementById("class-filter");
  const status = document.getElementById("filter-status");
  const items = [...document.querySelectorAll("[data-classes]")];
  const groups = [...document.querySelectorAll("[data-group]")];
  const apply = () => {
    const wanted = select.value;
    const shown = { row: 0, picture: 0 };
    for (const item of items) {
      item.hidden = wanted !== "" && !item.dataset.classes.split(" ").includes(wanted);
      if (!item.hidden) shown[item.tagName === "TR" ? "row" : "picture"] += 1;
    }
    for (const group of groups) {
      const empty = ![...group.querySelectorAll("[data-classes]")].some((item) => !item.hidden);
      group.querySelector("[data-empty]").hidden = !empty;
    }
    const name = select.options[select.selectedIndex].text;
    status.textContent = wanted === "" ? "" : `${name}: ${shown.picture} pictures, ${shown.row} table rows`;
  };
  document.getElementById("filter").hidden = false;
  select.addEventListener("change", apply);
  apply();
})();
