package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/shlex"
)

// documents returns the pages, the examples' comments and the READMEs, by their path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts, root := map[string]string{}, filepath.Join("..", "..")
	add := func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == ".levada") {
			return fs.SkipDir
		}
		if ext := filepath.Ext(path); ext == ".md" || ext == ".yaml" {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			texts[path] = string(text)
		}
		return nil
	}
	for _, dir := range []string{"docs", "examples"} {
		if err := filepath.WalkDir(filepath.Join(root, dir), add); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(text)
	}
	return texts
}

var (
	// A command line stands alone on a line, maybe behind a comment sign and ./bin/, or between backquotes.
	lineOfCommand = regexp.MustCompile(`(?m)^[# ]*(?:\$ )?(?:[A-Z_]+=\S+ )?(?:\./bin/)?(levada(?:-proxy)? [^\n]*)$`)
	inlineCommand = regexp.MustCompile("`(?:\\./bin/)?(levada(?:-proxy)? [^`\n]*)`")
	sentence      = regexp.MustCompile(`^levada(-proxy)? [a-z]+ (is|are|as|has|and|of|in|takes|gets|a|the|does|runs|does|itself|prints)\b`)
)

// TestCommandsInDocumentsExist finds commands and flags that the pages and examples name and the programs do not have.
func TestCommandsInDocumentsExist(t *testing.T) {
	found := 0
	for file, text := range documents(t) {
		for _, pattern := range []*regexp.Regexp{lineOfCommand, inlineCommand} {
			for _, m := range pattern.FindAllStringSubmatch(text, -1) {
				if line := m[1]; !sentence.MatchString(line) {
					found++
					checkCommandLine(t, file, line)
				}
			}
		}
	}
	if found < 150 {
		t.Errorf("%d command lines found, and there are more: the test looks for the wrong pattern", found)
	}
}

func checkCommandLine(t *testing.T, file, line string) {
	t.Helper()
	line = strings.NewReplacer("`", " ", `\|`, "|", "...", "").Replace(line)
	for _, end := range []string{" | ", " && ", "; ", " > ", " &", "  #", " # "} {
		line, _, _ = strings.Cut(line, end)
	}
	words, err := shlex.Split(line)
	if err != nil {
		return // an unfinished quotation: a sentence
	}
	if words[0] == "levada-proxy" {
		words = append([]string{"levada", "proxy"}, words[1:]...)
	}
	cmd, rest, err := newRootCommand().Find(words[1:])
	if err != nil {
		t.Errorf("%s: %s: %v", file, line, err)
		return
	}
	if len(rest) > 0 && cmd.HasSubCommands() && !cmd.Runnable() && regexp.MustCompile(`^[a-z]+$`).MatchString(rest[0]) {
		t.Errorf("%s: %s: %q is not a command of %s", file, line, rest[0], cmd.CommandPath())
	}
	for _, word := range rest {
		name, ok := strings.CutPrefix(word, "--")
		name, _, _ = strings.Cut(name, "=")
		name = strings.TrimRight(name, ".,:;)")
		if ok && name != "" && name != "help" && name != "version" && cmd.Flags().Lookup(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
			t.Errorf("%s: %s: %s has no flag --%s", file, line, cmd.CommandPath(), name)
		}
	}
}

// TestManifestsInDocumentsAreValid finds pipelines of the pages that levada validate would refuse.
func TestManifestsInDocumentsAreValid(t *testing.T) {
	block, found := regexp.MustCompile("(?ms)^```yaml\n(apiVersion: numaflow.*?)^```"), 0
	for file, text := range documents(t) {
		for _, m := range block.FindAllStringSubmatch(text, -1) {
			found++
			manifest := filepath.Join(t.TempDir(), "manifest.yaml")
			if err := os.WriteFile(manifest, []byte(m[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			if code, out, errs := executeForTest(t, "validate", manifest); code != 0 {
				t.Errorf("%s: exit code %d\n%s%s\n%s", file, code, out, errs, m[1])
			}
		}
	}
	if found < 3 {
		t.Errorf("%d manifests found, and there are more: the test looks for the wrong pattern", found)
	}
}
