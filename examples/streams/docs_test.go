package streams_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
)

var updateGuide = flag.Bool("update-guide", false, "rewrite the code blocks of docs/streams-guide.md from guide_test.go")

const docs = "../../docs"

// declarations returns the text of each declaration of a file, with its comment; of an Example, what is in its braces.
func declarations(t *testing.T, path string) map[string]string {
	t.Helper()
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	text := func(from, to token.Pos) string {
		return string(source[files.Position(from).Offset:files.Position(to).Offset])
	}
	all := map[string]string{}
	for _, declaration := range file.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			name, from := d.Name.Name, d.Pos()
			if d.Recv != nil {
				name = fmt.Sprint(receiver(d.Recv.List[0].Type), ".", name)
			}
			if strings.HasPrefix(name, "Example") {
				all[name] = strings.ReplaceAll(strings.Trim(text(d.Body.Lbrace+1, d.Body.Rbrace), "\n"), "\n\t", "\n")[1:]
				continue
			}
			if d.Doc != nil {
				from = d.Doc.Pos()
			}
			all[name] = text(from, d.End())
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if s, ok := spec.(*ast.TypeSpec); ok {
					from := d.Pos()
					if d.Doc != nil {
						from = d.Doc.Pos()
					}
					all[s.Name.Name] = text(from, d.End())
				}
			}
		}
	}
	return all
}

func receiver(e ast.Expr) string {
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	return e.(*ast.Ident).Name
}

var codeBlock = regexp.MustCompile("(?s)<!-- code: ([^>]+) -->\n```go\n(.*?)```\n")

// TestGuideIsThisCode: a guide whose code does not compile is worth less than none.
func TestGuideIsThisCode(t *testing.T) {
	path := filepath.Join(docs, "streams-guide.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	code := declarations(t, "guide_test.go")
	updated := codeBlock.ReplaceAllFunc(page, func(block []byte) []byte {
		names := string(codeBlock.FindSubmatch(block)[1])
		var parts []string
		for name := range strings.SplitSeq(names, " ") {
			part, ok := code[name]
			if !ok {
				t.Errorf("the guide names %s, which guide_test.go does not have", name)
			}
			parts = append(parts, part)
			delete(code, name)
		}
		return []byte("<!-- code: " + names + " -->\n```go\n" + strings.Join(parts, "\n\n") + "\n```\n")
	})
	if n, blocks := bytes.Count(page, []byte("```go\n")), len(codeBlock.FindAll(page, -1)); n != blocks {
		t.Errorf("%d of the guide's %d blocks of Go name no code of guide_test.go", n-blocks, n)
	}
	for name := range code {
		if strings.HasPrefix(name, "Example") {
			t.Errorf("the guide does not show %s", name)
		}
	}
	if *updateGuide {
		if err := os.WriteFile(path, updated, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(page, updated) {
		t.Error("the guide's code is not that of guide_test.go: go test ./examples/streams -run TestGuideIsThisCode -update-guide")
	}
}

// TestGuideRetention runs the guide's statement: it deletes what is old and final, and nothing else.
func TestGuideRetention(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docs, "streams-guide.md"))
	if err != nil {
		t.Fatal(err)
	}
	statement := regexp.MustCompile("(?s)```sql\n(with old.*?)```").FindSubmatch(page)
	if statement == nil {
		t.Fatal("the guide has no statement that begins with: with old")
	}
	store, err := pgstore.Open(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for id, change := range map[string]string{
		"old":    "state = 'completed', finished_at = now() - interval '31 days'",
		"recent": "state = 'completed', finished_at = now() - interval '29 days'",
		"failed": "state = 'failed', finished_at = now() - interval '31 days'",
		"ready":  "created_at = now() - interval '31 days'",
	} {
		if _, err := store.Submit(t.Context(), stream.Job{ID: id, Stream: "users"}); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Pool().Exec(t.Context(), `insert into levada_quarantine (job, seq, key, error, class, attempts, state)
			values ($1, 1, 'k', 'e', 'refused', 1, 'waiting')`, id); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Pool().Exec(t.Context(), "update levada_job set "+change+" where id = $1", id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Pool().Exec(t.Context(), string(statement[1])); err != nil {
		t.Fatalf("%v in\n%s", err, statement[1])
	}
	jobs, err := store.List(t.Context(), stream.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, job := range jobs {
		left = append(left, job.ID)
	}
	var rows int
	if err := store.Pool().QueryRow(t.Context(), "select count(*) from levada_quarantine where job <> 'old'").Scan(&rows); err != nil || rows != 3 {
		t.Errorf("%d rows of the other jobs are left in quarantine, %v", rows, err)
	}
	if slices.Sort(left); !slices.Equal(left, []string{"failed", "ready", "recent"}) {
		t.Errorf("the jobs left are %v", left)
	}
}

var namedCode = regexp.MustCompile("\\[[^]]+\\]\\(([^)]+)\\) `([^`]+)`")

// TestDesignNamesCodeThatExists: each step of the design is looked up in the code, and found.
func TestDesignNamesCodeThatExists(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docs, "streams-design.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.SplitSeq(string(page), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| step") {
			continue
		}
		named := namedCode.FindStringSubmatch(line)
		if named == nil {
			t.Errorf("a step names no code: %s", line)
			continue
		}
		text, err := os.ReadFile(filepath.Join(docs, named[1]))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Contains(text, []byte(named[2])) {
			t.Errorf("%s does not have %q", named[1], named[2])
		}
		found++
	}
	if found < 25 {
		t.Errorf("the page has %d steps, and had more", found)
	}
}

var (
	link  = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	block = regexp.MustCompile("(?s)\n```.*?\n```\n")
)

// TestLinksOfStreamPages: each file that the pages name is there.
func TestLinksOfStreamPages(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(docs, "streams*.md"))
	if err != nil || len(pages) < 4 {
		t.Fatalf("%d pages of streams, %v", len(pages), err)
	}
	for _, page := range append(pages, "python/README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(block.ReplaceAll(text, nil), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), string(m[1]))); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}
