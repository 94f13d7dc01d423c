package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// folder is what a directory with Go files looks like to a reader.
type folder struct {
	files int    // Go files, tests among them
	name  string // of its package; empty if it has tests only
	docs  []string
}

func folders(t *testing.T) map[string]*folder {
	t.Helper()
	root := filepath.Join("..", "..")
	all := map[string]*folder{}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && file != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			return err
		}
		path, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		path = filepath.ToSlash(path)
		if all[path] == nil {
			all[path] = &folder{}
		}
		f := all[path]
		f.files++
		if !strings.HasSuffix(file, "_test.go") {
			f.name = parsed.Name.Name
			if text := parsed.Doc.Text(); text != "" {
				f.docs = append(f.docs, text)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestPackagesHaveComments: a reader who opens a folder learns from its package comment what is in it.
func TestPackagesHaveComments(t *testing.T) {
	for path, f := range folders(t) {
		switch {
		case f.name == "", strings.HasPrefix(path, "proto/"): // tests only; generated
		case f.name == "main" && len(f.docs) == 0:
			t.Errorf("%s has no package comment: say what the program does", path)
		case f.name != "main" && !slices.ContainsFunc(f.docs, func(text string) bool { return strings.HasPrefix(text, "Package "+f.name+" ") }):
			t.Errorf(`%s has no package comment: begin one with "Package %s"`, path, f.name)
		}
	}
}

// maxFiles is how many Go files a folder may have, tests among them, without a reason.
const maxFiles = 25

// TestLargeFoldersExplainThemselves: the package comment of a folder with many files says in a section "# Files" why it is one folder, and what is in which file. Otherwise
// a reader has only the names to go by, and the next file goes there too.
func TestLargeFoldersExplainThemselves(t *testing.T) {
	large := 0
	for path, f := range folders(t) {
		if f.files <= maxFiles {
			continue
		}
		large++
		if !slices.ContainsFunc(f.docs, func(text string) bool { return strings.Contains(text, "\n# Files\n") }) {
			t.Errorf(`%s has %d Go files, and more than %d need a reason: split it, or say in a section "# Files" of its package comment why it is one folder`, path, f.files, maxFiles)
		}
	}
	if large == 0 {
		t.Error("no folder has many files: the test looks in the wrong place")
	}
}
