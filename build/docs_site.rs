//! Makes the documentation site of `docs/*.md`: a page for each, served below `/docs`, and the index of its search.
//!
//! `docs/index.md` is the front page. Its headings and the links below them are the navigation of every page.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

use super::web_file::WebFile;

const DOCS_FOLDER: &str = "docs";
const SITE_FOLDER: &str = "docs/site";
const FRONT_PAGE: &str = "index";

/// Style sheet and script of the site.
pub(crate) fn style_and_script_files() -> Result<Vec<WebFile>, Box<dyn Error>> {
    let mut files = Vec::new();
    for name in ["docs.css", "docs.js"] {
        let mut file = WebFile::new(name, fs::read(Path::new(SITE_FOLDER).join(name))?)?;
        file.add_content_hashed_name();
        files.push(file);
    }
    Ok(files)
}

/// Returns the pages, the images that they show, and the index of the search. `replace_file_names_with_hashed_names` replaces the names of other
/// files in a page.
pub(crate) fn render_site_files(
    replace_file_names_with_hashed_names: impl Fn(String) -> String,
) -> Result<Vec<WebFile>, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={DOCS_FOLDER}");
    let template = fs::read_to_string(Path::new(SITE_FOLDER).join("page.html"))?;
    let mut pages = BTreeMap::new();
    for name in page_names()? {
        let text = fs::read_to_string(format!("{DOCS_FOLDER}/{name}.md"))?;
        pages.insert(name, Page::render(&text));
    }
    let front = fs::read_to_string(format!("{DOCS_FOLDER}/{FRONT_PAGE}.md"))?;
    let navigation = Navigation::parse(&front);
    let mut files = Vec::new();
    let mut search_index = Vec::new();
    for (name, page) in &pages {
        let page_text = template
            .replace("{title}", &escape_html(&page.title))
            .replace("{navigation}", &navigation.render_html_for(name, page))
            .replace("{content}", &page.html);
        let file_name = format!("docs/{name}.html");
        let file = WebFile::new(&file_name, replace_file_names_with_hashed_names(page_text).into_bytes())?;
        files.push(file.with_url_path(&page_path(name)));
        search_index.extend(page.sections.iter().map(|section| section.to_json(name, &page.title)));
    }
    let search_index = format!("[{}]", search_index.join(",\n"));
    files.push(WebFile::new("docs/search.json", search_index.into_bytes())?);
    let mut images: Vec<&String> = pages.values().flat_map(|page| &page.images).collect();
    images.sort();
    images.dedup();
    for image in images {
        files.push(WebFile::new(
            &format!("docs/{image}"),
            fs::read(format!("{DOCS_FOLDER}/{image}"))?,
        )?);
    }
    Ok(files)
}

/// Names of the pages, sorted, without `.md`.
fn page_names() -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(DOCS_FOLDER)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".md").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Path of a page on the gateway.
fn page_path(name: &str) -> String {
    match name {
        FRONT_PAGE => "/docs".to_owned(),
        name => format!("/docs/{name}"),
    }
}

/// A page, rendered.
struct Page {
    title: String,
    html: String,
    /// What is above the first heading of the second level, and one for each of these.
    sections: Vec<SearchSection>,
    /// Names of images in `docs/`.
    images: Vec<String>,
}

/// What the search finds.
#[derive(Default)]
struct SearchSection {
    title: String,
    anchor: String,
    text: String,
}

impl SearchSection {
    fn to_json(&self, page: &str, page_title: &str) -> String {
        let link = match self.anchor.as_str() {
            "" => page_path(page),
            anchor => format!("{}#{anchor}", page_path(page)),
        };
        let text: Vec<&str> = self.text.split_whitespace().collect();
        format!(
            "[{},{},{},{}]",
            json_string(&link),
            json_string(page_title),
            json_string(&self.title),
            json_string(&text.join(" "))
        )
    }
}

impl Page {
    fn render(markdown: &str) -> Self {
        let mut page = Self {
            title: String::new(),
            html: String::new(),
            sections: vec![SearchSection::default()],
            images: Vec::new(),
        };
        let mut slugs = HeadingSlugs::default();
        let mut events = Vec::new();
        let mut parser = Parser::new_ext(markdown, Options::ENABLE_TABLES);
        while let Some(event) = parser.next() {
            match event {
                Event::Start(Tag::Heading { level, .. }) => {
                    let inside: Vec<Event> = parser.by_ref().take_while(|event| !is_end_of_heading(event)).collect();
                    page.add_heading(level, inside, &mut slugs, &mut events);
                }
                Event::Start(Tag::Link { ref dest_url, .. }) if !is_shown_on_site(dest_url) => {}
                Event::Start(Tag::Link {
                    link_type,
                    dest_url,
                    title,
                    id,
                }) => events.push(Event::Start(Tag::Link {
                    link_type,
                    dest_url: site_link(&dest_url).into(),
                    title,
                    id,
                })),
                Event::Start(Tag::Image {
                    link_type,
                    dest_url,
                    title,
                    id,
                }) => {
                    page.images.push(dest_url.to_string());
                    events.push(Event::Start(Tag::Image {
                        link_type,
                        dest_url: format!("/docs/{dest_url}").into(),
                        title,
                        id,
                    }));
                }
                Event::Html(text) | Event::InlineHtml(text) if text.trim_start().starts_with("<!--") => {}
                Event::Start(Tag::Table(alignments)) => {
                    events.push(raw_html_event("<div class=\"table\" tabindex=\"0\">"));
                    events.push(Event::Start(Tag::Table(alignments)));
                }
                Event::End(TagEnd::Table) => {
                    events.push(Event::End(TagEnd::Table));
                    events.push(raw_html_event("</div>\n"));
                }
                event => {
                    page.add_text(&event);
                    events.push(event);
                }
            }
        }
        drop_unopened_link_ends(&mut events);
        html::push_html(&mut page.html, events.into_iter());
        // What scrolls by itself has to be reachable by keyboard.
        page.html = page.html.replace("<pre>", "<pre tabindex=\"0\">");
        page
    }

    fn add_heading<'a>(
        &mut self,
        level: HeadingLevel,
        inside: Vec<Event<'a>>,
        slugs: &mut HeadingSlugs,
        events: &mut Vec<Event<'a>>,
    ) {
        let text: String = inside.iter().filter_map(event_text).collect();
        let anchor = slugs.unique_slug_for(&text);
        match level {
            HeadingLevel::H1 => self.title.clone_from(&text),
            HeadingLevel::H2 => self.sections.push(SearchSection {
                title: text,
                anchor: anchor.clone(),
                text: String::new(),
            }),
            _ => self.add_text(&Event::Text(text.into())),
        }
        events.push(raw_html_event(&format!("<{level} id=\"{anchor}\">")));
        events.extend(inside);
        if level != HeadingLevel::H1 {
            events.push(raw_html_event(&format!(
                " <a class=\"anchor\" href=\"#{anchor}\" aria-label=\"Link to this section\">#</a>"
            )));
        }
        events.push(raw_html_event(&format!("</{level}>\n")));
    }

    /// Adds text to the section that is searched.
    fn add_text(&mut self, event: &Event<'_>) {
        let (Some(section), Some(text)) = (self.sections.last_mut(), event_text(event)) else {
            return;
        };
        section.text.push_str(&text);
    }
}

fn raw_html_event<'a>(html: &str) -> Event<'a> {
    Event::Html(CowStr::from(html.to_owned()))
}

fn is_end_of_heading(event: &Event<'_>) -> bool {
    matches!(event, Event::End(TagEnd::Heading(_)))
}

/// Text of an event. The ends of blocks are a space, so that their words do not grow together.
fn event_text(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Text(text) | Event::Code(text) => Some(text.to_string()),
        Event::SoftBreak | Event::HardBreak => Some(" ".to_owned()),
        Event::End(TagEnd::Paragraph | TagEnd::TableCell | TagEnd::Item | TagEnd::CodeBlock) => Some(" ".to_owned()),
        _ => None,
    }
}

/// Whether a link leads to a page of the site or to another site. Files of the repository are named, not linked.
fn is_shown_on_site(link: &str) -> bool {
    let is_page = link
        .split('#')
        .next()
        .is_some_and(|path| path.is_empty() || (path.ends_with(".md") && !path.contains('/')));
    is_page || link.starts_with("https://")
}

/// Turns `quality.md#layers` into `/docs/quality#layers`.
fn site_link(link: &str) -> String {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let anchor = if anchor.is_empty() {
        String::new()
    } else {
        format!("#{anchor}")
    };
    match path.strip_suffix(".md") {
        Some(page) if !link.starts_with("https://") => format!("{}{anchor}", page_path(page)),
        _ => link.to_owned(),
    }
}

/// Removes the ends of links whose beginnings were left out.
fn drop_unopened_link_ends(events: &mut Vec<Event<'_>>) {
    // Links do not contain links.
    let mut is_open = false;
    events.retain(|event| match event {
        Event::Start(Tag::Link { .. }) => {
            is_open = true;
            true
        }
        Event::End(TagEnd::Link) => std::mem::take(&mut is_open),
        _ => true,
    });
}

/// Anchors of the headings of a page, as forges make them, so that links work there and here.
#[derive(Default)]
struct HeadingSlugs(BTreeMap<String, usize>);

impl HeadingSlugs {
    fn unique_slug_for(&mut self, heading: &str) -> String {
        let slug: String = heading
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let count = self.0.entry(slug.clone()).or_default();
        *count += 1;
        match *count {
            1 => slug,
            count => format!("{slug}-{}", count - 1),
        }
    }
}

/// Groups of pages: the headings of the front page and the links below them.
struct Navigation(Vec<(String, Vec<(String, String)>)>);

impl Navigation {
    fn parse(front_page: &str) -> Self {
        let mut groups: Vec<(String, Vec<(String, String)>)> = Vec::new();
        let mut parser = Parser::new_ext(front_page, Options::ENABLE_TABLES);
        while let Some(event) = parser.next() {
            match event {
                Event::Start(Tag::Heading {
                    level: HeadingLevel::H2,
                    ..
                }) => {
                    let inside = parser.by_ref().take_while(|event| !is_end_of_heading(event));
                    groups.push((inside.filter_map(|event| event_text(&event)).collect(), Vec::new()));
                }
                Event::Start(Tag::Link { dest_url, .. }) => {
                    let inside = parser
                        .by_ref()
                        .take_while(|event| !matches!(event, Event::End(TagEnd::Link)));
                    let text: String = inside.filter_map(|event| event_text(&event)).collect();
                    if let (Some((_, pages)), Some(name)) = (groups.last_mut(), dest_url.strip_suffix(".md")) {
                        pages.push((name.to_owned(), text));
                    }
                }
                _ => {}
            }
        }
        Self(groups)
    }

    /// The navigation on a page, with its sections.
    fn render_html_for(&self, current: &str, page: &Page) -> String {
        let mut html = String::new();
        for (group, pages) in &self.0 {
            let _ = writeln!(html, "<h2>{}</h2>\n<ul>", escape_html(group));
            for (name, title) in pages {
                let (title, path) = (escape_html(title), page_path(name));
                if name != current {
                    let _ = writeln!(html, "<li><a href=\"{path}\">{title}</a></li>");
                    continue;
                }
                let _ = writeln!(html, "<li><a href=\"{path}\" aria-current=\"page\">{title}</a>\n<ul>");
                for section in page.sections.iter().filter(|section| !section.anchor.is_empty()) {
                    let (anchor, title) = (&section.anchor, escape_html(&section.title));
                    let _ = writeln!(html, "<li><a href=\"#{anchor}\">{title}</a></li>");
                }
                html.push_str("</ul></li>\n");
            }
            html.push_str("</ul>\n");
        }
        html
    }
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            c => json.push(c),
        }
    }
    json.push('"');
    json
}
