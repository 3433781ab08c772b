/* The page's one table: a heading sorts by its column, the other way when it is clicked again; the field above filters. */
const table = document.querySelector("table.index"), field = document.getElementById("filter");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows];
  field.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    let way = 1;
    const sort = () => {
      const by = row => row.cells[column].dataset.by, number = text => text !== "" && !isNaN(text);
      rows.sort((a, b) => way * (number(by(a)) && number(by(b)) ? by(a) - by(b) : by(a).localeCompare(by(b))));
      body.append(...rows);
      for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      way = -way;
    };
    heading.tabIndex = 0;
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
