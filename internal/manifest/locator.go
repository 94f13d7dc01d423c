package manifest

import (
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// locator finds the place of a field in the text that a manifest was read from. It reads positions only: what a scalar
// means is for the decoder to say, because YAML libraries disagree about that.
type locator struct {
	file string
	root *yaml.Node
	// firstLine is added to the lines of nodes, whose count restarts with each document.
	firstLine int
}

// position of the field at p; of the nearest field around it when it does not exist. A nil locator knows nothing.
func (l *locator) position(p path) (file string, line, column int) {
	if l == nil {
		return "", 0, 0
	}
	key, value := l.find(p)
	node := value
	// "vertices:" says better where a list is than its first element, which is a line below.
	if key != nil && isCollection(value) {
		node = key
	}
	return l.file, node.Line + l.firstLine, node.Column
}

// keyPosition is position, but of the field's name.
func (l *locator) keyPosition(p path) (file string, line, column int) {
	key, value := l.find(p)
	if key == nil {
		key = value
	}
	return l.file, key.Line + l.firstLine, key.Column
}

// find walks down as far as it can, through aliases to where things are written. key is nil at the root and for elements of lists.
func (l *locator) find(p path) (key, value *yaml.Node) {
	value = resolve(l.root)
	for rest := string(p); rest != ""; {
		var element string
		element, rest = cutElement(rest)
		k, v := child(value, element)
		if v == nil {
			if inner := embedded(key, value); inner != nil {
				if k, v = child(inner, element); v != nil {
					key, value = k, v
					continue
				}
			}
			break
		}
		key, value = k, resolve(v)
	}
	return key, value
}

// embedded is the YAML that the text of a block scalar holds (bufferConfig: |), with the positions that it has in the file; nil for anything else.
func embedded(key, value *yaml.Node) *yaml.Node {
	if key == nil || value.Kind != yaml.ScalarNode || value.Style&yaml.LiteralStyle == 0 {
		return nil
	}
	root, err := parseYAML([]byte(value.Value))
	if err != nil || root == nil || root.Kind != yaml.MappingNode {
		return nil
	}
	// The text begins a line below the bar, and is indented further than its key: by two spaces, as people write it. The node does not say.
	shift(root, value.Line, key.Column+1)
	return root
}

func shift(n *yaml.Node, lines, columns int) {
	n.Line += lines
	n.Column += columns
	for _, c := range n.Content {
		shift(c, lines, columns)
	}
}

// cutElement takes the first element from a path: "a", "[3]" or "[some.key]".
func cutElement(s string) (element, rest string) {
	s = strings.TrimPrefix(s, ".")
	if strings.HasPrefix(s, "[") {
		if end := strings.IndexByte(s, ']'); end >= 0 {
			return s[:end+1], s[end+1:]
		}
		return s, ""
	}
	if end := strings.IndexAny(s, ".["); end >= 0 {
		return s[:end], s[end:]
	}
	return s, ""
}

func child(n *yaml.Node, element string) (key, value *yaml.Node) {
	if n.Kind == yaml.SequenceNode {
		i, err := strconv.Atoi(strings.Trim(element, "[]"))
		if err != nil || i < 0 || i >= len(n.Content) {
			return nil, nil
		}
		return nil, n.Content[i]
	}
	if n.Kind != yaml.MappingNode {
		return nil, nil
	}
	element = strings.TrimSuffix(strings.TrimPrefix(element, "["), "]")
	// The last of several equal keys is the one that decoding keeps.
	for i := len(n.Content) - 2; i >= 0; i -= 2 {
		if n.Content[i].Value == element {
			return n.Content[i], n.Content[i+1]
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag != "!!merge" {
			continue
		}
		merged := []*yaml.Node{n.Content[i+1]}
		if m := resolve(n.Content[i+1]); m.Kind == yaml.SequenceNode {
			merged = m.Content
		}
		for _, m := range merged {
			if m = resolve(m); m.Kind == yaml.MappingNode {
				if k, v := child(m, element); v != nil {
					return k, v
				}
			}
		}
	}
	return nil, nil
}

func isCollection(n *yaml.Node) bool {
	return n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}
