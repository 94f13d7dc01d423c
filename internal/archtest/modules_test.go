package archtest

import (
	"bufio"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// workspace are the folders of go.work's modules, with slashes; "." is the root module.
func workspace(t *testing.T, root string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "go.work"))
	if err != nil {
		t.Fatal(err)
	}
	_, uses, _ := strings.Cut(string(data), "use (")
	uses, _, _ = strings.Cut(uses, ")")
	var dirs []string
	for dir := range strings.FieldsSeq(uses) {
		dirs = append(dirs, path.Clean(dir))
	}
	if len(dirs) < 2 {
		t.Fatalf("go.work has %d modules: the test reads it wrong", len(dirs))
	}
	return dirs
}

// foreign reports whether a folder is a module that has rules of its own: one that go.work does not use.
func foreign(root, dir string, modules []string) bool {
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return false
	}
	rel, err := filepath.Rel(root, dir)
	return err == nil && !slices.Contains(modules, filepath.ToSlash(rel))
}

// required are the modules that a go.mod requires.
func required(t *testing.T, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var list []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(strings.TrimPrefix(s.Text(), "require "))
		if len(fields) >= 2 && strings.HasPrefix(fields[1], "v") && strings.Contains(fields[0], ".") {
			list = append(list, fields[0])
		}
	}
	return list
}

// longest is the longest of the paths that name is or is below of, or "".
func longest(paths []string, name string) (found string) {
	for _, p := range paths {
		if len(p) > len(found) && (name == p || strings.HasPrefix(name, p+"/")) {
			found = p
		}
	}
	return found
}

// In a workspace each module sees what the others require. So an import that its own go.mod lacks builds here, and fails for the users of a library; in a test file, `go mod
// tidy` of a user adds the module that has it to theirs, with all that it needs.
func TestModulesRequireWhatTheyImport(t *testing.T) {
	root := filepath.Join("..", "..")
	dirs := workspace(t, root)
	ours := make([]string, len(dirs))
	requires := map[string][]string{}
	for i, dir := range dirs {
		ours[i] = path.Join(module, dir)
		requires[ours[i]] = required(t, filepath.Join(root, dir, "go.mod"))
	}
	seen := 0
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && file != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || foreign(root, file, dirs)) {
			return fs.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		own := longest(ours, path.Join(module, filepath.ToSlash(rel)))
		for _, i := range parsed.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			first, _, _ := strings.Cut(imported, "/")
			if !strings.Contains(first, ".") {
				continue
			}
			seen++
			want := longest(ours, imported)
			switch {
			case want == own, want == "" && longest(requires[own], imported) != "", slices.Contains(requires[own], want):
			case want == module:
				t.Errorf("%s imports %s of the root module, which module %s may not require: its users would get the server's dependencies. Move what is used into a module of its own, or the test to test/", rel, imported, own)
			default:
				t.Errorf("%s imports %s, which the go.mod of %s does not require: run `make tidy`, and mind that users of the module get what it requires", rel, imported, own)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 1000 {
		t.Errorf("%d imports found, and there are more: the test looks in the wrong place", seen)
	}
}

// What the modules of the libraries may not require, directly or not. The check of what users really get is TestUsersOfTheLibrariesGetLightModules in test/e2e.
func TestLibrariesRequireNoServer(t *testing.T) {
	heavy := []string{"k8s.io", "github.com/nats-io", "github.com/jackc/pgx", "modernc.org", "github.com/rabbitmq", "github.com/prometheus", "go.opentelemetry.io"}
	for _, dir := range []string{"proto", "grpclife", "sdk", "stream", "internal/testserver"} {
		for _, name := range required(t, filepath.Join("..", "..", dir, "go.mod")) {
			if found := longest(heavy, name); found != "" {
				t.Errorf("%s/go.mod requires %s: what needs it has to be a module of its own", dir, name)
			}
		}
	}
}
