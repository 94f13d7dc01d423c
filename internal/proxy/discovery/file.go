package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxFile is how large a file of endpoints may be, which is some hundred thousand of them.
const maxFile = 8 << 20

// file reads a list again and again. Its size and time are no short cut: a file that is rewritten at once has the same ones.
type file struct {
	path, target string
	poll         time.Duration
	tracker      *Tracker
}

func (f *file) Status() Status { return f.tracker.Status() }
func (f *file) String() string { return f.target }

func (f *file) Run(ctx context.Context, update func([]string)) error {
	var before, parsed []byte
	var endpoints []string
	var invalid error
	for {
		wait := f.poll
		text, err := readFile(f.path)
		switch {
		case err != nil:
			f.tracker.Fail(err)
		case parsed != nil && !bytes.Equal(text, parsed) && !bytes.Equal(text, before):
			wait /= 5 // somebody may be writing it
		default:
			if parsed == nil || !bytes.Equal(text, parsed) {
				endpoints, invalid = parseFile(f.path, text)
				parsed = text
			}
			if invalid == nil {
				f.tracker.Succeed(endpoints, update)
			} else {
				f.tracker.Fail(invalid)
			}
		}
		before = text
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func readFile(path string) ([]byte, error) {
	// A pipe would wait for a writer when it is opened.
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("endpoints: %s is not a regular file", path)
	}
	open, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	defer open.Close()
	text, err := io.ReadAll(io.LimitReader(open, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("endpoints: %s is larger than %d MiB", path, maxFile>>20)
	}
	return text, nil
}

// parseFile reads the list: host:port on each line, or a list in JSON or YAML. Errors name the line.
func parseFile(path string, text []byte) ([]string, error) {
	lines := strings.Split(strings.TrimPrefix(string(text), "\ufeff"), "\n")
	first := ""
	for i, line := range lines {
		line, _, _ = strings.Cut(line, "#")
		lines[i] = strings.TrimSpace(line)
		if first == "" {
			first = lines[i]
		}
	}
	switch {
	case first == "":
		return nil, fmt.Errorf("%s: the file has no endpoints; write [] if there are none", path)
	case first[0] == '-', first[0] == '[' && (!strings.Contains(first, "]:") || strings.ContainsAny(first, `"',`)): // and no [::1]:9000
		return parseYAML(path, text)
	}
	var endpoints []string
	for i, line := range lines {
		if line == "" {
			continue
		}
		endpoint, err := parseAny(line)
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, i+1, err)
		}
		endpoints = append(endpoints, endpoint)
	}
	return endpoints, nil
}

// parseYAML reads a list of strings. JSON is YAML.
func parseYAML(path string, text []byte) ([]string, error) {
	var document, more yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&document); err != nil {
		return nil, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if document.Content[0].Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("%s: line %d: expected a list of host:port", path, document.Content[0].Line)
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: line %d: expected one list, and nothing after it", path, more.Line)
	}
	endpoints := []string{}
	for _, item := range document.Content[0].Content {
		if item.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("%s: line %d: expected a host:port", path, item.Line)
		}
		endpoint, err := parseAny(item.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, item.Line, err)
		}
		endpoints = append(endpoints, endpoint)
	}
	return endpoints, nil
}
