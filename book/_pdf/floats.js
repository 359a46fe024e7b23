// Lets the text that follows a figure stand before it where the figure does not fit on its page, as in a printed book.
// Takes the height of a page in millimetres; the window has to be as wide as the text on paper.
(millimetres) => {
  const height = (millimetres * 96) / 25.4;
  const line = 20;
  const whole = "figure, table, .exercise, .important, .tip, .cell_input, div.math";
  const isText = (element) => element?.matches("p, ul, ol") && !element.textContent.trim().endsWith(":");

  for (const sheet of document.querySelectorAll(".sheet")) {
    const begin = sheet.getBoundingClientRect().top;
    let blank = 0; // what is left empty at the feet of the pages so far
    const left = (element) => {
      const { top, height: own } = element.getBoundingClientRect();
      const room = height - ((top - begin + blank) % height);
      return own < height && own > room ? room : 0;
    };
    for (const element of sheet.querySelectorAll(whole)) {
      const block = element.closest("section > *");
      if (element.matches("figure") && !block.querySelector(".cell_input")) {
        for (let next; left(element) > line && isText((next = block.nextElementSibling)); ) block.before(next);
      }
      blank += left(element);
    }
  }
}
