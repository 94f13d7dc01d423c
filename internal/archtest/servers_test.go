package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// withErrorLog are the types that write plain text to standard error, where with --log-format json every line must be a record, unless their ErrorLog is set.
var withErrorLog = map[string][]string{"net/http": {"Server"}, "net/http/httputil": {"ReverseProxy"}}

// withoutServer are functions that make such a server themselves.
var withoutServer = map[string][]string{
	"net/http":          {"ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS"},
	"net/http/httputil": {"NewSingleHostReverseProxy"},
}

// TestServersLogWithTheRest finds HTTP servers whose errors (a panic in a handler, a failed TLS handshake) would go past the log. Examples log as they like.
func TestServersLogWithTheRest(t *testing.T) {
	root, found := filepath.Join("..", ".."), 0
	modules := workspace(t, root)
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			if name := entry.Name(); file != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "test" || name == "examples") {
				return fs.SkipDir
			}
			if foreign(root, file, modules) {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, file, nil, 0)
		if err != nil {
			return err
		}
		n, wrong := servers(parsed)
		found += n
		for _, at := range wrong {
			t.Errorf("%s: give the server an ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)", files.Position(at))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 5 {
		t.Errorf("%d servers found, and there are more: the test looks in the wrong place", found)
	}
}

// servers counts the servers that a file makes, and returns the places of those without an ErrorLog.
func servers(file *ast.File) (n int, wrong []token.Pos) {
	names := map[string]string{} // of imported packages
	for _, i := range file.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		if names[filepath.Base(path)] = path; i.Name != nil {
			names[i.Name.Name] = path
		}
	}
	is := func(e ast.Expr, what map[string][]string) bool {
		s, ok := e.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		pkg, ok := s.X.(*ast.Ident)
		return ok && slices.Contains(what[names[pkg.Name]], s.Sel.Name)
	}
	ast.Inspect(file, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.CompositeLit:
			if !is(node.Type, withErrorLog) {
				return true
			}
			n++
			if !slices.ContainsFunc(node.Elts, func(e ast.Expr) bool {
				pair, ok := e.(*ast.KeyValueExpr)
				if !ok {
					return false
				}
				key, ok := pair.Key.(*ast.Ident)
				return ok && key.Name == "ErrorLog"
			}) {
				wrong = append(wrong, node.Pos())
			}
		case *ast.CallExpr:
			made, ok := node.Fun.(*ast.Ident)
			if is(node.Fun, withoutServer) || ok && made.Name == "new" && len(node.Args) == 1 && is(node.Args[0], withErrorLog) {
				wrong = append(wrong, node.Pos())
			}
		case *ast.ValueSpec:
			if node.Type != nil && is(node.Type, withErrorLog) {
				wrong = append(wrong, node.Pos())
			}
		}
		return true
	})
	return n, wrong
}

// TestServersWithoutAnErrorLogAreFound tries the ways to make one.
func TestServersWithoutAnErrorLogAreFound(t *testing.T) {
	for code, want := range map[string]int{
		"var s = http.Server{}":                           1,
		"var s = &web.Server{Addr: \"x\"}":                1,
		"var s = &http.Server{ErrorLog: nil}":             0,
		"var s http.Server":                               1,
		"var s = new(http.Server)":                        1,
		"func f() { _ = http.ListenAndServe(\"\", nil) }": 1,
		"var p = &httputil.ReverseProxy{}":                1,
		"var s = other.Server{}":                          0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
import ("net/http"; web "net/http"; "net/http/httputil"; "example.com/other")
`+code, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, wrong := servers(file); len(wrong) != want {
			t.Errorf("%s: %d found", code, len(wrong))
		}
	}
}
