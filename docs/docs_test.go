// Package docs checks the documentation: that links lead somewhere, that files and messages which it names exist, and that its English is plain.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const root = ".."

// notOurs are folders without documentation and program text of this module.
var notOurs = map[string]bool{".git": true, "bin": true, "node_modules": true, "testdata": true, ".levada": true, "generated": true}

// files returns the files below root with one of the suffixes, by their path in the repository.
func files(t *testing.T, suffixes ...string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if notOurs[entry.Name()] {
				return fs.SkipDir
			}
			return nil
		}
		for _, suffix := range suffixes {
			if strings.HasSuffix(path, suffix) {
				name, _ := filepath.Rel(root, path)
				found = append(found, name)
				return nil
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatalf("no %v below %s: the test looks in the wrong place", suffixes, root)
	}
	return found
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	fenced  = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	inline  = regexp.MustCompile("`[^`\n]*`")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	unslug  = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

// slug is the anchor that GitHub gives a heading.
func slug(heading string) string {
	heading = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(heading, "$1")
	return strings.ReplaceAll(unslug.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), ""), " ", "-")
}

func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		all[slug(m[1])] = true
	}
	return all
}

// TestLinksLeadSomewhere finds links to files and headings that do not exist: a page that was moved or a heading that was rewritten leaves them behind.
func TestLinksLeadSomewhere(t *testing.T) {
	for _, file := range files(t, ".md") {
		text := inline.ReplaceAllString(fenced.ReplaceAllString(read(t, file), ""), "x")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			to := file
			if target != "" {
				to = filepath.Join(filepath.Dir(file), target)
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: link to %s: no such file", file, m[1])
			} else if anchor != "" && strings.HasSuffix(to, ".md") && !anchors(read(t, to))[anchor] {
				t.Errorf("%s: link to %s: no such heading", file, m[1])
			}
		}
	}
}

// TestEveryPageIsInTheIndex finds pages that a reader of docs/index.md would not find.
func TestEveryPageIsInTheIndex(t *testing.T) {
	index := read(t, "docs/index.md")
	for _, file := range files(t, ".md") {
		if filepath.Dir(file) == "docs" && file != "docs/index.md" && !strings.Contains(index, "("+filepath.Base(file)) {
			t.Errorf("docs/index.md does not mention %s", file)
		}
	}
}

// literals returns the text of every string literal of the module's programs, with concatenated ones put together, by the place where each begins.
var literals = sync.OnceValue(func() map[string]string {
	all := map[string]string{}
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if notOurs[entry.Name()] {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		places := token.NewFileSet()
		parsed, err := parser.ParseFile(places, path, nil, 0)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		ast.Inspect(parsed, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			text, ok := constant(e)
			if ok {
				all[name+":"+strconv.Itoa(places.Position(e.Pos()).Line)+":"+strconv.Itoa(places.Position(e.Pos()).Column)] = text
			}
			return !ok
		})
		return nil
	})
	return all
})

// constant is the text of a string literal, or of several with plus signs between them.
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return "", false
		}
		left, ok := constant(e.X)
		if !ok {
			return "", false
		}
		right, ok := constant(e.Y)
		return left + right, ok
	}
	return "", false
}

// TestMessagesExist finds log lines and errors of docs/troubleshoot.md that the programs do not have any more: a user would search the page for the new ones.
func TestMessagesExist(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")
	rows := row.FindAllStringSubmatch(read(t, "docs/troubleshoot.md"), -1)
	if len(rows) < 40 {
		t.Fatalf("%d messages found, and there are more: the test looks for the wrong pattern", len(rows))
	}
	for _, m := range rows {
		found := false
		for _, text := range literals() {
			if found = strings.Contains(text, m[1]); found {
				break
			}
		}
		if !found {
			t.Errorf("docs/troubleshoot.md: no program says %q: change the row together with the message", m[1])
		}
	}
}
