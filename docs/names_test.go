package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode"
)

// TestNamesOfTheTreeExist finds files, folders, commands of make and Go names in the pages for contributors that do not exist any more: a reader who follows a message
// by file names would look for them in vain. A name after the word "new" is one that a contributor makes; it must not exist yet.
func TestNamesOfTheTreeExist(t *testing.T) {
	pages := []string{"docs/architecture.md", "docs/contributing.md", "CONTRIBUTING.md"}
	for _, file := range files(t, ".md") {
		if filepath.Dir(file) == "docs/decisions" {
			pages = append(pages, file)
		}
	}
	checked := 0
	for _, page := range pages {
		n, wrong := wrongNames(read(t, page))
		for _, w := range wrong {
			t.Errorf("%s:%s", page, w)
		}
		checked += n
	}
	if checked < 300 {
		t.Errorf("%d names found, and there are more: the test looks for the wrong pattern", checked)
	}
}

// TestEveryFolderIsInTheTree finds packages that the table of docs/architecture.md has no row for, neither for them nor for a folder above.
func TestEveryFolderIsInTheTree(t *testing.T) {
	listed := map[string]bool{}
	for line := range strings.Lines(read(t, "docs/architecture.md")) {
		cell, _, isRow := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		if !isRow || !strings.HasPrefix(line, "|") {
			continue
		}
		folder := "."
		for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
			if strings.Contains(m[2], "/") {
				folder = path.Dir(m[2])
			}
			listed[path.Join(folder, path.Base(m[2]))] = true
		}
	}
	for _, file := range tree() {
		folder := path.Dir(file)
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for !listed[folder] && folder != "." {
			folder = path.Dir(folder)
		}
		if folder == "." && !strings.HasPrefix(file, "tools/") {
			t.Errorf("docs/architecture.md has no row for %s: add one to the table of the tree", path.Dir(file))
			listed[path.Dir(file)] = true
		}
	}
}

// TestWrongNamesAreFound: a check that accepts everything would pass too.
func TestWrongNamesAreFound(t *testing.T) {
	for text, want := range map[string]int{
		"`buffer/writer.go` `internal/dataplane/buffer` `internal/manifest/validate_*.go` `buffer.Writer` `Writer.Write` `buffer.Writer.Write` `ErrLostEnd`": 0,
		"`go test ./internal/metrics -update` `make test` `internal/dataplane/source/NAMEsource/` new `internal/dataplane/window` `io.EOF` `DATA`":           0,
		"| `internal/dataplane/source`, `sink` | x |": 0,
		"| `internal/dataplane/source`, `sunk` | x |": 1,
		"`buffer/wroter.go`":                          1,
		"`riter.go`":                                  1,
		"`internal/dataplane/bufer`":                  1,
		"`internal/nothing/NAMEsource/`":              1,
		"`internal/manifest/nothing_*.go`":            1,
		"new `internal/dataplane/buffer`":             1,
		"`buffer.Wroter`":                             1,
		"`Writer.Wrote`":                              1,
		"`buffer.Writer.Wrote`":                       1,
		"`nothing.Writer`":                            1,
		"`ErrNothing`":                                1,
		"`go test ./internal/nothing`":                1,
		"`make nothing`":                              1,
		"`Writer.Write` (`buffer/writer.go`)":         0,
		"`Writer.Write` (`buffer/reader.go`)":         1,
		"`takeUp` in `buffer/writer.go`":              1,
		"`Encoder` and `nothing` in `buffer/nope.go`": 1,
	} {
		if _, wrong := wrongNames(text); len(wrong) != want {
			t.Errorf("%s: found %q, want %d", text, wrong, want)
		}
	}
}

var (
	quoted     = regexp.MustCompile("(new )?`([^`\n]+)`")
	plainPath  = regexp.MustCompile(`^[\w.-]+(/[\w.*-]+)*/?$`)
	extension  = regexp.MustCompile(`^[\w*-]+\.(go|md|txt|yaml|mod|proto|sql)$`)
	goName     = regexp.MustCompile(`^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(\))?$`)
	holeInPath = regexp.MustCompile(`[A-Z]{4}`)
	declaredIn = regexp.MustCompile("`([A-Za-z_.]+)`(?: in|,)? \\(?`([\\w./-]+\\.go)`")
)

// others are names of the standard library and of users' data that pages use.
var others = []string{"go.sum", "go.work", "io.EOF", "net/http", "testing/synctest", "in/words.txt", "data.txt", "a/b"}

// wrongNames returns how many names a page has in backticks that this test understands, and those that do not exist, with their lines.
func wrongNames(text string) (checked int, wrong []string) {
	text = fenced.ReplaceAllStringFunc(text, func(block string) string { return strings.Repeat("\n", strings.Count(block, "\n")) })
	for i, line := range strings.Split(text, "\n") {
		for _, m := range declaredIn.FindAllStringSubmatch(line, -1) {
			if name := m[1]; declared(name) && inTree(m[2]) && !slices.ContainsFunc(declarations().places[name], func(file string) bool { return strings.HasSuffix("/"+file, "/"+m[2]) }) {
				wrong = append(wrong, fmt.Sprintf("%d: `%s` is not in %s", i+1, name, m[2]))
			}
		}
		folder := "" // of the path before, in the first cell of a row
		for _, m := range quoted.FindAllStringSubmatchIndex(line, -1) {
			name, isNew := line[m[4]:m[5]], m[2] >= 0
			siblings := strings.HasPrefix(line, "|") && !strings.Contains(line[1:m[0]], "|")
			ok, known := exists(name)
			if siblings && strings.Contains(folder, "/") && plainPath.MatchString(name) && !ok {
				ok, known = inTree(path.Join(folder, name)), true
			}
			if siblings && strings.Contains(name, "/") {
				folder = path.Dir(strings.TrimSuffix(name, "/"))
			}
			if !known {
				continue
			}
			checked++
			switch {
			case isNew && ok:
				wrong = append(wrong, fmt.Sprintf("%d: `%s` is called new, and exists", i+1, name))
			case !isNew && !ok:
				wrong = append(wrong, fmt.Sprintf("%d: there is no `%s`", i+1, name))
			}
		}
	}
	return checked, wrong
}

// exists reports whether a name exists. It is unknown if it is neither a path nor a command nor a name of a Go program.
func exists(name string) (ok, known bool) {
	if slices.Contains(others, name) {
		return true, true
	}
	if command, rest, more := strings.Cut(name, " "); more {
		return commandExists(command, rest)
	}
	switch {
	case plainPath.MatchString(name) && strings.Contains(name, "/") && !strings.Contains(name[:strings.Index(name, "/")], "."), extension.MatchString(name):
		return inTree(name), true
	case goName.MatchString(name) && mixed(name):
		return declared(strings.TrimSuffix(name, "()")), true
	}
	return false, false
}

// mixed reports whether a word is a Go name rather than a word of English, of a protocol or of a manifest: it has a dot, or letters of both cases.
func mixed(name string) bool {
	return strings.Contains(name, ".") || strings.ContainsFunc(name, unicode.IsUpper) && strings.ContainsFunc(name, unicode.IsLower)
}

func commandExists(command, rest string) (ok, known bool) {
	switch command {
	case "make":
		target, _, _ := strings.Cut(rest, " ")
		text, _ := os.ReadFile(filepath.Join(root, "Makefile"))
		return regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).Match(text), true
	case "go":
		for _, word := range strings.Fields(rest) {
			if folder, is := strings.CutPrefix(word, "./"); is && folder != "..." {
				return inTree(strings.TrimSuffix(folder, "/...")), true
			}
		}
	}
	return false, false
}

// tree has every file and folder of the repository, by its path.
var tree = sync.OnceValue(func() (all []string) {
	_ = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && entry.Name() != ".." && notOurs[entry.Name()] {
			return fs.SkipDir
		}
		name, _ := filepath.Rel(root, file)
		all = append(all, filepath.ToSlash(name))
		return nil
	})
	return all
})

// inTree reports whether a file or folder has this path, or one that ends with it. A word in capitals stands for any name, so that only the folder above counts.
func inTree(name string) bool {
	name = strings.TrimPrefix(strings.TrimSuffix(name, "/"), "./")
	if at := holeInPath.FindStringIndex(name); at != nil && !strings.HasSuffix(name, ".md") {
		name = path.Dir(name[:at[0]] + "x")
	}
	depth := strings.Count(name, "/") + 1
	return slices.ContainsFunc(tree(), func(file string) bool {
		parts := strings.Split(file, "/")
		if len(parts) < depth {
			return false
		}
		ok, _ := path.Match(name, strings.Join(parts[len(parts)-depth:], "/"))
		return ok
	})
}

// goNames is what the module's programs declare.
type goNames struct {
	// places are the files of "Name", "package.Name", "Type.Member" and "package.Type.Member". Members are methods, fields, and the names of fields in manifests.
	places map[string][]string
	// file is the one being read.
	file string
}

var declarations = sync.OnceValue(func() *goNames {
	all := &goNames{places: map[string][]string{}}
	for _, file := range tree() {
		if !strings.HasSuffix(file, ".go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.SkipObjectResolution)
		if err != nil {
			panic(err)
		}
		pkg := strings.TrimSuffix(parsed.Name.Name, "_test")
		all.file = file
		for _, d := range parsed.Decls {
			all.declaration(pkg, d)
		}
	}
	return all
})

func (g *goNames) add(names ...string) {
	for _, name := range names {
		g.places[name] = append(g.places[name], g.file)
	}
}

func (g *goNames) top(pkg, name string) { g.add(name, pkg+"."+name) }

func (g *goNames) member(pkg, typ, name string) { g.add(name, typ+"."+name, pkg+"."+typ+"."+name) }

func (g *goNames) declaration(pkg string, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			g.top(pkg, d.Name.Name)
			return
		}
		typ := d.Recv.List[0].Type
		ast.Inspect(typ, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				g.member(pkg, id.Name, d.Name.Name)
				return false
			}
			return true
		})
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.ValueSpec:
				for _, n := range s.Names {
					g.top(pkg, n.Name)
				}
			case *ast.TypeSpec:
				g.top(pkg, s.Name.Name)
				g.fields(pkg, s)
			}
		}
	}
}

func (g *goNames) fields(pkg string, s *ast.TypeSpec) {
	var list *ast.FieldList
	switch typ := s.Type.(type) {
	case *ast.StructType:
		list = typ.Fields
	case *ast.InterfaceType:
		list = typ.Methods
	default:
		return
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			g.member(pkg, s.Name.Name, n.Name)
		}
		if f.Tag == nil {
			continue
		}
		tag, _ := strconv.Unquote(f.Tag.Value)
		for _, key := range []string{"json", "yaml"} {
			if name, _, _ := strings.Cut(reflect.StructTag(tag).Get(key), ","); name != "" {
				g.member(pkg, s.Name.Name, name)
			}
		}
	}
}

// declared reports whether the module declares a Go name.
func declared(name string) bool { return len(declarations().places[name]) > 0 }
