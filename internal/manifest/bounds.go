package manifest

import (
	"fmt"

	yaml "go.yaml.in/yaml/v3"
)

// bounded reports a document that would cost too much to decode. It looks at nodes, which are as many as the text is long,
// before anything writes out aliases.
func (d *decoder) bounded(l *locator) bool {
	e := expansion{sizes: map[*yaml.Node]int{}}
	size := e.size(l.root, 0)
	line, column := l.root.Line+l.firstLine, l.root.Column
	switch {
	case e.tooDeep:
		d.problem(line, column, CodeTooDeep, tooDeep)
	case e.cyclic:
		d.problem(line, column, CodeAliases, "an alias lies inside its own anchor")
	case size > maxExpandedBytes:
		d.problem(line, column, CodeAliases, fmt.Sprintf("with its aliases written out the document would have more than %d bytes", maxExpandedBytes))
	default:
		return true
	}
	return false
}

// expansion measures documents with their aliases written out. Each anchor is measured once, so that a small text which
// stands for a huge one costs little.
type expansion struct {
	sizes           map[*yaml.Node]int // 0 while a node is being measured
	tooDeep, cyclic bool
}

func (e *expansion) size(n *yaml.Node, depth int) int {
	if depth > maxDepth {
		e.tooDeep = true
		return 0
	}
	if n.Anchor != "" || n.Kind == yaml.AliasNode {
		target := n
		if n.Kind == yaml.AliasNode {
			target = resolve(n)
		}
		if size, ok := e.sizes[target]; ok {
			e.cyclic = e.cyclic || size == 0
			return size
		}
		e.sizes[target] = 0
		size := e.contentSize(target, depth)
		e.sizes[target] = size
		return size
	}
	return e.contentSize(n, depth)
}

func (e *expansion) contentSize(n *yaml.Node, depth int) int {
	size := len(n.Value) + 4
	for _, c := range n.Content {
		if size += e.size(c, depth+1); size > maxExpandedBytes || e.tooDeep {
			break // it cannot get smaller
		}
	}
	return size
}

// duplicates reports fields that are there twice in one object.
func duplicates(r *report, n *yaml.Node, at path) {
	if n.Kind == yaml.MappingNode {
		first := make(map[string]*yaml.Node, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			before, twice := first[key.Value]
			if !twice {
				first[key.Value] = key
				continue
			}
			if r.full() {
				return
			}
			r.problems = append(r.problems, Problem{
				Severity: SeverityError, Code: CodeDuplicateField, File: r.object.locator.file,
				Line: key.Line + r.object.locator.firstLine, Column: key.Column, Path: string(at.at(key.Value)),
				Message: fmt.Sprintf("%s is there twice; the first is in line %d", quote(key.Value), before.Line+r.object.locator.firstLine),
				Hint:    "keep one of them",
			})
		}
	}
	for i, c := range n.Content { // an alias has no content, so each anchor is seen once
		switch {
		case n.Kind == yaml.SequenceNode:
			duplicates(r, c, at.item(i))
		case i%2 == 1:
			duplicates(r, c, at.at(ifShort(n.Content[i-1].Value))) // the path of each child is a copy
		}
	}
}
