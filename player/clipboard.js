// Copies text, also on pages without TLS, which have no `navigator.clipboard`.

/** Copies a text; resolves with whether it could. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = Object.assign(document.createElement('textarea'), { value: text, readOnly: true });
  document.body.append(area);
  const focused = document.activeElement;
  area.select();
  const isCopied = document.execCommand('copy');
  area.remove();
  focused?.focus?.();
  return isCopied;
}
