package pipelinecmd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/manifest"
)

// stdinName is what positions call the standard input.
const stdinName = "<stdin>"

// proxyConfig tells a configuration of the proxy by a list that each one has nearly always.
var proxyConfig = regexp.MustCompile(`(?m)^(listeners|backends):`)

// maxInput bounds what is read from one file. The decoder refuses less, with a message; this keeps a pipe from filling the memory.
const maxInput = 64 << 20

// manifests are what the arguments of a command name.
type manifests struct {
	objects  []manifest.Object
	problems manifest.Problems
	lines    map[string][]string // the texts, for excerpts
}

// loadManifests reads files, directories with all their YAML and JSON, and the standard input for "-".
func loadManifests(args []string, stdin io.Reader) manifests {
	m := manifests{lines: map[string][]string{}}
	for _, arg := range args {
		files := []string{arg}
		if info, err := os.Stat(arg); arg != "-" && err == nil && info.IsDir() {
			files, err = manifestsIn(arg)
			if err != nil {
				m.unreadable(arg, err)
			} else if len(files) == 0 {
				m.empty(arg, "the directory has no .yaml, .yml or .json files")
			}
		}
		for _, file := range files {
			m.load(file, stdin)
		}
	}
	return m
}

func (m *manifests) load(file string, stdin io.Reader) {
	if _, twice := m.lines[file]; twice {
		return
	}
	data, err := readManifest(&file, stdin)
	if err != nil {
		m.unreadable(file, err)
		return
	}
	m.lines[file] = strings.Split(string(data), "\n")
	objects, problems := manifest.Decode(file, data)
	for i := range problems {
		if p := &problems[i]; p.Code == manifest.CodeUnknownKind && p.Hint == "" && proxyConfig.Match(data) {
			p.Hint = "this looks like a configuration of the proxy, which levada proxy validate checks"
		}
	}
	m.objects = append(m.objects, objects...)
	m.problems = append(m.problems, problems...)
	if len(problems) == 0 && len(objects) == 0 {
		m.empty(file, "the file has no manifest")
	}
}

func readManifest(file *string, stdin io.Reader) ([]byte, error) {
	from := stdin
	if *file == "-" {
		*file = stdinName
	} else {
		f, err := os.Open(*file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	var data bytes.Buffer
	n, err := data.ReadFrom(io.LimitReader(from, maxInput+1))
	if err == nil && n > maxInput {
		err = fmt.Errorf("more than %d bytes", maxInput)
	}
	return data.Bytes(), err
}

func (m *manifests) unreadable(file string, err error) {
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		err = pathErr.Err // the path is said already
	}
	m.problems = append(m.problems, manifest.Problem{
		Severity: manifest.SeverityError, Code: manifest.CodeUnreadable, File: file, Message: "cannot be read: " + err.Error(),
	})
}

func (m *manifests) empty(file, message string) {
	m.problems = append(m.problems, manifest.Problem{
		Severity: manifest.SeverityWarning, Code: manifest.CodeNoManifest, File: file, Message: message,
	})
}

func manifestsIn(dir string) (files []string, err error) {
	err = filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && file != dir && strings.HasPrefix(name, ".") {
			return fs.SkipDir // .git and the like
		}
		if !entry.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) {
			files = append(files, file)
		}
		return nil
	})
	return files, err
}
