package stream_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A program that imports these packages has no command line of ours: log lines and errors that name its commands or flags send its users to something
// that is not there.
func TestMessagesNameNoCommands(t *testing.T) {
	command := regexp.MustCompile(`\blevada (stream|run|proxy|broker) |--[a-z]+-?[a-z]+`)
	files := 0
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if text, ok := n.(*ast.BasicLit); ok && text.Kind == token.STRING {
				if found := command.FindString(text.Value); found != "" {
					t.Errorf("%v: %q in %s: name the function to call; the command line adds its own hint", set.Position(text.Pos()), found, text.Value)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || files < 50 {
		t.Fatalf("%d files read, error %v", files, err)
	}
}
