//! The documentation site: each page is there, and every link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use millstream::Gateway;

use crate::http::client::{Request, gateway};

/// Links of a page, as it writes them.
fn links(html: &str) -> Vec<String> {
    ["href=\"", "src=\""]
        .iter()
        .flat_map(|attribute| html.split(attribute).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .map(|link| link.replace("&amp;", "&"))
        .collect()
}

/// The pages and files of the site that links lead to from the front page, by path.
async fn crawl(gateway: &Gateway) -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    let mut open = vec!["/docs".to_owned(), "/docs/search.json".to_owned()];
    while let Some(path) = open.pop() {
        if pages.contains_key(&path) {
            continue;
        }
        let reply = Request::new("GET", &path).send(gateway).await;
        assert_eq!(reply.status, 200, "{path}");
        let is_page = reply.header("content-type") == Some("text/html; charset=utf-8");
        let text = if is_page || path.ends_with(".json") {
            reply.text().to_owned()
        } else {
            String::new()
        };
        if is_page && path.starts_with("/docs") {
            let found = links(&text).into_iter().filter(|link| link.starts_with('/'));
            open.extend(found.filter_map(|link| link.split('#').next().map(str::to_owned)));
        }
        pages.insert(path, text);
    }
    pages
}

#[tokio::test]
async fn every_link_of_the_documentation_leads_somewhere() {
    let gateway = gateway(&[]).await;
    let pages = crawl(&gateway).await;
    gateway.stop().await;
    let mut checked = 0;
    for (path, html) in pages.iter().filter(|(path, _)| path.starts_with("/docs")) {
        for link in links(html) {
            let Some((target, anchor)) = link.split_once('#') else {
                continue;
            };
            if link.starts_with("https://") {
                continue;
            }
            let target = if target.is_empty() { path.as_str() } else { target };
            let id = format!(" id=\"{anchor}\"");
            assert!(pages[target].contains(&id), "{path}: there is no {target}#{anchor}");
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[tokio::test]
async fn every_page_of_the_folder_is_in_the_navigation_and_in_the_search() {
    let gateway = gateway(&[]).await;
    let pages = crawl(&gateway).await;
    let redirect = Request::new("GET", "/docs/").send(&gateway).await;
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("/docs")));
    let first = Request::new("GET", "/docs/api")
        .header("Accept-Encoding", "br")
        .send(&gateway)
        .await;
    assert_eq!(first.header("content-encoding"), Some("br"));
    gateway.stop().await;
    let index: Vec<[String; 4]> = serde_json::from_str(&pages["/docs/search.json"]).expect("the index");
    let searched: BTreeSet<&str> = index.iter().filter_map(|[link, ..]| link.split('#').next()).collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
    for entry in fs::read_dir(folder).expect("docs/") {
        let name = entry.expect("entry").file_name().into_string().expect("name");
        let Some(page) = name.strip_suffix(".md") else { continue };
        let path = if page == "index" {
            "/docs".to_owned()
        } else {
            format!("/docs/{page}")
        };
        let html = pages
            .get(&path)
            .unwrap_or_else(|| panic!("docs/index.md does not link {name}"));
        assert!(searched.contains(path.as_str()), "{path} is not searched");
        assert!(!html.contains("{title}") && !html.contains("{content}"), "{path}");
        // What is marked in the source for tests, and files of the repository, are no part of the page.
        assert!(!html.contains("not run:") && !html.contains(".md\""), "{path}");
    }
    // A text is found where it stands.
    let [link, page, title, text] = index
        .iter()
        .find(|[.., text]| text.contains("discover asks the networks"))
        .expect("the section");
    assert_eq!(
        (link.as_str(), page.as_str()),
        ("/docs/cameras#finding-cameras", "Cameras")
    );
    assert!(title == "Finding cameras" && !text.contains('<'), "{title}: {text}");
}

/// Links of pages that are read in the repository.
#[tokio::test]
async fn files_of_the_repository_are_linked_where_they_are() {
    let gateway = gateway(&[]).await;
    let pages = crawl(&gateway).await;
    gateway.stop().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    for page in [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "fuzz/README.md",
    ] {
        let text = fs::read_to_string(root.join(page)).expect(page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = root.join(page).with_file_name(file);
            assert!(target.exists(), "{page}: there is no {file}");
            let site_path = file.strip_prefix("docs/").and_then(|name| name.strip_suffix(".md"));
            if let (Some(name), false) = (site_path, anchor.is_empty()) {
                let id = format!(" id=\"{anchor}\"");
                assert!(
                    pages[&format!("/docs/{name}")].contains(&id),
                    "{page}: there is no {link}"
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 15, "{checked}");
}
