// Package archtest holds the import arrows of arrows.txt against the files. It reads them itself: what runs `go list` is answered from go's test cache after
// a rule was broken.
package archtest

import (
	_ "embed"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/levada-io/levada"

//go:embed arrows.txt
var arrows string

// rule is a line of arrows.txt.
type rule struct {
	ours   []string // a name, or name/... for all below it
	others []string // prefixes; nil for all
}

func rules(t *testing.T) map[string]rule {
	t.Helper()
	all := map[string]rule{}
	for line := range strings.Lines(arrows) {
		line, _, _ = strings.Cut(line, "#")
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if name == "" || strings.HasPrefix(name, restricted) {
			continue
		}
		ours, others, only := strings.Cut(rest, "only:")
		r := rule{ours: strings.Fields(ours)}
		if only {
			r.others = strings.Fields(others)
		}
		if _, twice := all[name]; twice || !ok || len(r.ours) == 0 || only && len(r.others) == 0 {
			t.Fatalf("arrows.txt: %q is not a rule, or the second for its package", strings.TrimSpace(line))
		}
		all[name] = r
	}
	return all
}

// ruleFor is the rule of the package itself, or of the nearest folder above it with "/...".
func ruleFor(all map[string]rule, pkg string) (string, rule, bool) {
	if r, ok := all[pkg]; ok {
		return pkg, r, true
	}
	for dir := path.Dir(pkg); dir != "."; dir = path.Dir(dir) {
		if r, ok := all[dir+"/..."]; ok {
			return dir + "/...", r, true
		}
	}
	return "", rule{}, false
}

func (r rule) allows(imported string) bool {
	if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
		return names(r.ours, ours)
	}
	if r.others == nil {
		return true
	}
	first, _, _ := strings.Cut(imported, "/")
	standard := !strings.Contains(first, ".")
	return slices.ContainsFunc(r.others, func(prefix string) bool {
		return prefix == "std" && standard || imported == prefix || strings.HasPrefix(imported, prefix+"/")
	})
}

// names reports whether a list names a package: itself, or with /... a folder above it.
func names(list []string, pkg string) bool {
	return slices.ContainsFunc(list, func(name string) bool {
		folder, below := strings.CutSuffix(name, "/...")
		return pkg == folder || below && strings.HasPrefix(pkg, folder+"/")
	})
}

// restricted begins a line that says who may import something.
const restricted = "restricted "

// importers are the packages that may import what not everybody may.
func importers(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for line := range strings.Lines(arrows) {
		line, ok := strings.CutPrefix(strings.TrimSpace(line), restricted)
		if !ok {
			continue
		}
		imported, list, ok := strings.Cut(line, ":")
		if !ok || len(strings.Fields(list)) == 0 {
			t.Fatalf("arrows.txt: %q does not say who may import it", line)
		}
		if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
			imported = module + "/" + imported
		}
		all[imported] = strings.Fields(list)
	}
	return all
}

// What stays behind one package is imported by nothing else, so that it can be exchanged. Everybody who may import it does: the list is no longer than it must be.
func TestRestrictedImports(t *testing.T) {
	allowed, used := importers(t), map[string]bool{}
	if len(allowed) == 0 {
		t.Fatal("arrows.txt restricts nothing")
	}
	for pkg, list := range imports(t) {
		for imported, file := range list {
			who, ok := allowed[imported]
			if !ok {
				continue
			}
			if !names(who, pkg) {
				t.Errorf("%s imports %s, which only %s may: see internal/archtest/arrows.txt", file, imported, strings.Join(who, ", "))
			}
			for _, name := range who {
				if names([]string{name}, pkg) {
					used[imported+" "+name] = true
				}
			}
		}
	}
	for imported, who := range allowed {
		for _, name := range who {
			if !used[imported+" "+name] {
				t.Errorf("arrows.txt: %s does not import %s", name, imported)
			}
		}
	}
}

// imports are those of all packages: package, imported path, the file that imports it.
func imports(t *testing.T) map[string]map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	modules, found := workspace(t, root), map[string]map[string]string{}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); file != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules") {
				return fs.SkipDir
			}
			if foreign(root, file, modules) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		if found[pkg] == nil {
			found[pkg] = map[string]string{}
		}
		for _, i := range parsed.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			found[pkg][imported] = filepath.ToSlash(strings.TrimPrefix(file, root+string(filepath.Separator)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestArrows(t *testing.T) {
	all, used := rules(t), map[string]bool{}
	found := imports(t)
	for _, pkg := range slices.Sorted(maps.Keys(found)) {
		name, r, ok := ruleFor(all, pkg)
		if !ok {
			if top, _, _ := strings.Cut(pkg, "/"); slices.Contains([]string{"internal", "api", "sdk", "proto", "cmd", "stream", "grpclife"}, top) {
				t.Errorf("%s has no rule: say in internal/archtest/arrows.txt what it may import", pkg)
			}
			continue
		}
		used[name] = true
		for _, imported := range slices.Sorted(maps.Keys(found[pkg])) {
			if !r.allows(imported) {
				t.Errorf("%s imports %s, which the rule of %s in internal/archtest/arrows.txt does not allow", found[pkg][imported], imported, name)
			}
		}
	}
	for name := range all {
		if !used[name] {
			t.Errorf("arrows.txt: there is no package %s", name)
		}
	}
}

// Only a vertex and what runs vertices may know drivers. The catalogue knows those that are built in, and nothing else.
func TestDrivers(t *testing.T) {
	drivers := func(imported string) bool {
		for _, kind := range []string{"buffer", "source", "sink"} {
			if strings.HasPrefix(imported, module+"/internal/dataplane/"+kind+"/") && strings.HasSuffix(imported, kind) {
				return true
			}
		}
		return false
	}
	known := map[string]bool{}
	for pkg, list := range imports(t) {
		for imported, file := range list {
			if !drivers(imported) {
				continue
			}
			known[imported] = true
			builtin := pkg == "internal/dataplane/catalogue" && strings.HasPrefix(imported[strings.LastIndexByte(imported, '/')+1:], "builtin")
			service := strings.HasPrefix(pkg, "internal/dataplane/isb/") && strings.HasSuffix(imported, "buffer")
			if pkg != "internal/dataplane/vertex" && !service && !builtin {
				t.Errorf("%s knows the driver %s: only internal/dataplane/vertex and, of buffers, buffer services do", file, imported)
			}
		}
	}
	if len(known) < 8 {
		t.Errorf("only %d drivers were found: %v", len(known), known)
	}
}

// Names that say nothing about what a package does.
func TestNames(t *testing.T) {
	empty := []string{"util", "utils", "common", "shared", "types", "misc", "base", "helper", "helpers", "manager", "managers"}
	for pkg := range imports(t) {
		for name := range strings.SplitSeq(pkg, "/") {
			if slices.Contains(empty, name) && pkg != "proto/numaflow/common" { // named by the contract
				t.Errorf("package %s: %q does not say what it does", pkg, name)
			}
		}
	}
}
