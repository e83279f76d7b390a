// The documentation site: the search, and a navigation that is folded where it would push the text away.

const field = document.getElementById('search');
const results = document.getElementById('results');
const contents = document.getElementById('contents');

const MAX_RESULTS = 12;
/** Characters of the text that are shown around what was found. */
const CONTEXT = 70;

const narrow = matchMedia('(max-width: 880px)');
const fold = () => (contents.open = !narrow.matches);
narrow.addEventListener('change', fold);
fold();

let loading;
/** The sections of all pages: link, title of the page, title of the section, text. Loaded once, when it is needed. */
const sections = () =>
  (loading ??= fetch('/docs/search.json').then((response) => {
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    return response.json();
  }));

/** How well a section matches all words, 0 if it lacks one: titles count more than text. */
function score([, page, title, text], words) {
  let sum = 0;
  for (const word of words) {
    const inTitle = title.toLowerCase().includes(word);
    const inPage = page.toLowerCase().includes(word);
    const times = text.toLowerCase().split(word).length - 1;
    if (!inTitle && !inPage && times === 0) return 0;
    sum += (inTitle ? 20 : 0) + (inPage ? 10 : 0) + Math.min(times, 9);
  }
  return sum;
}

/** The text around the first word that was found, in which all of them are marked. */
function excerpt(text, words) {
  const lower = text.toLowerCase();
  const first = Math.max(0, ...words.map((word) => lower.indexOf(word)).filter((at) => at >= 0).slice(0, 1));
  const start = first > CONTEXT ? lower.indexOf(' ', first - CONTEXT) + 1 : 0;
  const shown = text.slice(start, first + 2 * CONTEXT);
  const parts = [];
  let rest = shown;
  while (rest) {
    const found = words
      .map((word) => [rest.toLowerCase().indexOf(word), word])
      .filter(([at]) => at >= 0)
      .sort(([a], [b]) => a - b)[0];
    if (!found) break;
    const [at, word] = found;
    const mark = document.createElement('mark');
    mark.textContent = rest.slice(at, at + word.length);
    parts.push(rest.slice(0, at), mark);
    rest = rest.slice(at + word.length);
  }
  return [start > 0 ? '… ' : '', ...parts, rest, ' …'];
}

function resultOf([link, page, title, text], words) {
  const item = document.createElement('li');
  const anchor = document.createElement('a');
  anchor.href = link;
  const heading = document.createElement('strong');
  heading.textContent = title && title !== page ? `${page} › ${title}` : page;
  const context = document.createElement('span');
  context.append(...excerpt(text, words));
  anchor.append(heading, context);
  item.append(anchor);
  return item;
}

function note(text) {
  const item = document.createElement('li');
  item.className = 'none';
  item.textContent = text;
  return item;
}

async function search() {
  const words = field.value.toLowerCase().split(/\s+/).filter((word) => word.length > 1);
  results.hidden = words.length === 0;
  if (words.length === 0) return;
  try {
    const scored = (await sections()).map((section) => [score(section, words), section]);
    const found = scored.filter(([points]) => points > 0).sort(([a], [b]) => b - a).slice(0, MAX_RESULTS);
    results.replaceChildren(...found.map(([, section]) => resultOf(section, words)));
    if (found.length === 0) results.append(note('Nothing found.'));
  } catch (error) {
    loading = undefined;
    results.replaceChildren(note(`The search index could not be loaded: ${error.message}`));
  }
}

field.hidden = false;
field.addEventListener('focus', () => sections().catch(() => (loading = undefined)), { once: true });
field.addEventListener('input', search);
document.addEventListener('keydown', (event) => {
  if (event.key === '/' && !/^(input|textarea|select)$/i.test(event.target.localName)) {
    event.preventDefault();
    field.focus();
  } else if (event.key === 'Escape' && event.target === field) {
    field.value = '';
    search();
  }
});
results.addEventListener('click', (event) => {
  // A section of this page is shown without loading it again.
  if (event.target.closest('a')) results.hidden = true;
});
