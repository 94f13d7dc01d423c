package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	kyaml "sigs.k8s.io/yaml"

	"github.com/levada-io/levada/api/v1alpha1"
)

// What a text may cost to read, also a hostile one. Real manifests stay a hundred times below.
const (
	maxDocumentBytes = 4 << 20
	maxFileBytes     = 32 << 20
	maxExpandedBytes = 16 << 20 // what a document is with its aliases written out
	maxDepth         = 100
	maxDocuments     = 5000 // of a file, items of lists included
	maxListDepth     = 3    // of lists in lists, each of which is decoded separately
)

// Object is a manifest together with the place it came from.
//
// +kubebuilder:object:generate=false
type Object struct {
	Manifest v1alpha1.Manifest

	locator *locator
	// broken are the fields that could not be decoded. What follows from that is not reported again.
	broken []path
}

// NewObject makes an object of a manifest that does not come from a text. Its problems have no positions.
func NewObject(m v1alpha1.Manifest) Object { return Object{Manifest: m} }

// Kind of the manifest.
func (o Object) Kind() string { return o.Manifest.GetObjectKind().GroupVersionKind().Kind }

// Position is where the field at a path such as spec.vertices[1].sink was written, or the nearest field around it. The file is
// empty when the object was not decoded.
func (o Object) Position(fieldPath string) (file string, line, column int) {
	return o.locator.position(path(fieldPath))
}

// Decode reads every document in a text of YAML or JSON, as strictly as the Kubernetes API server does: unknown fields and
// fields that are there twice are errors. Items of lists are objects of their own, and kinds that are not ours become Other.
//
// It reports all problems, each with its place. An object with problems is returned too as far as it could be read, so that
// Validate can go on.
func Decode(filename string, data []byte) ([]Object, Problems) {
	d := &decoder{file: filename}
	d.text(data)
	d.problems.Sort()
	return d.objects, d.problems
}

type decoder struct {
	file     string
	objects  []Object
	problems Problems

	documents int // so far
}

func (d *decoder) text(data []byte) {
	if len(data) > maxFileBytes {
		d.problem(1, 1, CodeTooLarge, fmt.Sprintf("the file has %d bytes, and at most %d are read", len(data), maxFileBytes))
		return
	}
	if i := invalidUTF8(data); i >= 0 {
		line := bytes.Count(data[:i], []byte("\n")) + 1
		d.problem(line, 1, CodeSyntax, "the line is not valid UTF-8")
		return
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // a byte order mark
	if text := bytes.TrimSpace(data); len(text) > 0 && (text[0] == '{' || text[0] == '[') {
		docs, err := jsonDocuments(data)
		if err == nil || filepath.Ext(d.file) == ".json" {
			d.json(data, docs, err)
			return
		}
		// Not JSON, so it is YAML that starts with a bracket.
	}
	for _, doc := range splitYAML(data) {
		if d.documents > maxDocuments {
			return
		}
		d.yaml(doc)
	}
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

func (d *decoder) problem(line, column int, code Code, message string) {
	d.problems = append(d.problems, Problem{
		Severity: code.severity(), Code: code, File: d.file, Line: line, Column: column, Message: message,
	})
}

func (d *decoder) json(data []byte, docs []jsonDocument, err error) {
	switch {
	case errors.Is(err, errTooDeep):
		d.problem(1, 1, CodeTooDeep, tooDeep)
	case err != nil:
		line, column := 1, 1
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			before := data[:min(int(syntax.Offset), len(data))]
			line = bytes.Count(before, []byte("\n")) + 1
			column = max(1, utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]))
		}
		d.problem(line, column, CodeSyntax, "not JSON: "+err.Error())
	}
	for _, doc := range docs {
		if len(doc.text) > maxDocumentBytes {
			d.problem(doc.root.Line, 1, CodeTooLarge, fmt.Sprintf(documentTooLarge, len(doc.text), maxDocumentBytes))
			continue
		}
		l := &locator{file: d.file, root: doc.root}
		if d.bounded(l) {
			d.document(doc.text, l)
		}
	}
}

const (
	documentTooLarge = "the document has %d bytes, and at most %d are read"
	tooDeep          = "fields lie more than 100 levels deep in one another"
)

var errTooDeep = errors.New(tooDeep)

// yamlDocument is a piece of a file. line counts the lines before it.
type yamlDocument struct {
	text []byte
	line int
}

// splitYAML cuts a file at its document markers, as kubectl does: by lines.
func splitYAML(data []byte) []yamlDocument {
	var docs []yamlDocument
	current := yamlDocument{}
	line, start := 0, 0
	for offset := 0; offset < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[offset:], '\n'); i >= 0 {
			end = offset + i + 1
		}
		if isMarker(data[offset:end], "---") || isMarker(data[offset:end], "...") {
			current.text = data[start:offset]
			docs = append(docs, current)
			current, start = yamlDocument{line: line}, offset
			if data[offset] == '.' { // belongs to the document before
				current.line, start = line+1, end
			}
		}
		offset = end
	}
	current.text = data[start:]
	return append(docs, current)
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?(?:line (\d+): )?`)

func (d *decoder) yaml(doc yamlDocument) {
	if len(doc.text) > maxDocumentBytes {
		d.problem(doc.line+1, 1, CodeTooLarge, fmt.Sprintf(documentTooLarge, len(doc.text), maxDocumentBytes))
		return
	}
	root, err := parseYAML(doc.text)
	if err != nil {
		d.yamlSyntax(doc, err)
		return
	}
	if root == nil {
		return // comments only
	}
	l := &locator{file: d.file, root: root, firstLine: doc.line}
	if hasTemplateKey(root) && d.notRendered(doc) || !d.bounded(l) {
		return
	}
	text, err := yamlToJSON(doc.text)
	if err != nil {
		d.yamlSyntax(doc, err)
		return
	}
	d.document(text, l)
}

// parseYAML gives nil for a document without content. Parsers of YAML have panicked before; a manifest is not worth it.
func parseYAML(text []byte) (root *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the parser failed: %v", p)
		}
	}()
	var document yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, errors.New("there is more text after the end of the document"))
	}
	if len(document.Content) == 0 || document.Content[0].Tag == "!!null" {
		return nil, nil
	}
	return document.Content[0], nil
}

func yamlToJSON(text []byte) (_ []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the parser failed: %v", p)
		}
	}()
	return kyaml.YAMLToJSON(text)
}

// document decodes one document, whose text is JSON by now.
func (d *decoder) document(text []byte, l *locator) {
	r := &report{object: Object{locator: l}}
	duplicates(r, l.root, "")
	d.value(r, text, l, 0)
	d.problems = append(d.problems, d.missingMarker(r.problems)...)
}

// value decodes a document, or an item of a list.
func (d *decoder) value(r *report, text []byte, l *locator, listDepth int) {
	if d.documents++; d.documents > maxDocuments {
		if d.documents == maxDocuments+1 {
			r.add("", Problem{Code: CodeTooLarge, Message: fmt.Sprintf("the file has more than %d documents; the rest is not read", maxDocuments)})
		}
		return
	}
	var generic any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &generic); err != nil {
		r.add("", Problem{Code: CodeSyntax, Message: "not JSON: " + err.Error()})
		return
	}
	fields, ok := generic.(map[string]any)
	if !ok {
		r.add("", Problem{Code: CodeNotAnObject, Message: "a manifest is an object with apiVersion and kind, and this is " + describe(generic)})
		return
	}
	kind, _ := fields["kind"].(string)
	apiVersion, isText := fields["apiVersion"].(string)
	if fields["apiVersion"] != nil && !isText {
		apiVersion = v1alpha1.APIVersion // that it is not text will be said below
	}
	if strings.HasSuffix(kind, "List") && fields["items"] != nil {
		if listDepth >= maxListDepth {
			r.add("", Problem{Code: CodeTooDeep, Message: fmt.Sprintf("lists lie more than %d levels deep in one another", maxListDepth)})
			return
		}
		d.list(text, l, listDepth+1)
		return
	}
	m := manifestFor(r, apiVersion, kind)
	if m == nil {
		return
	}
	if other, ok := m.(*Other); ok {
		decodeOther(other, text)
		d.objects = append(d.objects, Object{Manifest: other, locator: l})
		return
	}
	object := Object{Manifest: m, locator: l, broken: checkTypes(r, fields, m)}
	if len(object.broken) > 0 {
		text, _ = json.Marshal(fields) // it was JSON a moment ago
	}
	// The API server's decoder has the last word; checkTypes only knows the places. Duplicates were found with theirs.
	strict, err := kjson.UnmarshalStrict(text, m, kjson.DisallowUnknownFields)
	if err = errors.Join(append(strict, err)...); err != nil {
		r.add("", Problem{Code: CodeWrongType, Message: "the manifest cannot be decoded: " + err.Error()})
	}
	d.objects = append(d.objects, object)
}

func decodeOther(o *Other, text []byte) {
	o.JSON = text
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
	}
	// A name of the wrong type is the business of those who own the kind.
	_ = kjson.UnmarshalCaseSensitivePreserveInts(text, &head)
	o.Type = head.TypeMeta
	o.Name, o.Namespace = head.Metadata.Name, head.Metadata.Namespace
}

// list decodes the items of a List, each as if it stood alone.
func (d *decoder) list(text []byte, l *locator, listDepth int) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	r := &report{object: Object{locator: l}}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &list); err != nil {
		r.add("items", Problem{Code: CodeWrongType, Message: "items is not a list", Expected: "a list of manifests"})
	}
	_, items := child(resolve(l.root), "items")
	for i, item := range list.Items {
		at := &locator{file: l.file, root: l.root, firstLine: l.firstLine}
		if _, node := child(resolve(orSelf(items)), strconv.Itoa(i)); node != nil {
			at.root = node
		}
		itemReport := &report{object: Object{locator: at}}
		d.value(itemReport, item, at, listDepth)
		r.problems = append(r.problems, itemReport.problems...)
	}
	d.problems = append(d.problems, r.problems...)
}

func orSelf(n *yaml.Node) *yaml.Node {
	if n == nil {
		return &yaml.Node{}
	}
	return n
}

// manifestFor decides by apiVersion and kind what a document is. It gives nil when that cannot be said.
func manifestFor(r *report, apiVersion, kind string) v1alpha1.Manifest {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	newManifest, known := kinds[kind]
	switch {
	case apiVersion == v1alpha1.APIVersion && known:
		return newManifest()
	case kind == "":
		r.missing("kind", Problem{Code: CodeUnknownKind, Message: "kind is missing", Expected: oneOf(names)})
		return nil
	case apiVersion == v1alpha1.APIVersion:
		r.add("kind", Problem{
			Code: CodeUnknownKind, Message: fmt.Sprintf("%s has no kind %q", v1alpha1.APIVersion, kind),
			Expected: oneOf(names), DidYouMean: r.suggest(kind, names),
		})
		return nil
	case known && apiVersion == "":
		r.missing("apiVersion", Problem{Code: CodeAPIVersion, Message: "apiVersion is missing", Expected: v1alpha1.APIVersion})
		return newManifest()
	case known && resembles(apiVersion):
		r.add("apiVersion", Problem{
			Code: CodeAPIVersion, Message: fmt.Sprintf("%q is not a version of %s that exists", apiVersion, kind),
			Expected: v1alpha1.APIVersion, DidYouMean: v1alpha1.APIVersion,
		})
		return newManifest()
	case apiVersion == "":
		r.missing("apiVersion", Problem{Code: CodeAPIVersion, Message: "apiVersion is missing", Expected: v1alpha1.APIVersion, DidYouMean: r.suggest(kind, names)})
		return nil
	}
	if apiVersion == "v1" && (kind == "Secret" || kind == "ConfigMap") {
		return &Other{} // their values are used where a manifest refers to them
	}
	r.add("kind", Problem{
		Code: CodeOtherKind, Message: fmt.Sprintf("%s of %s is not one of our kinds; it is kept and not looked at", kind, apiVersion),
	})
	return &Other{}
}

// resembles says whether an apiVersion is ours with a mistake, and not somebody else's: others have a kind Pipeline too.
func resembles(apiVersion string) bool {
	group, _, _ := strings.Cut(apiVersion, "/")
	return strings.Contains(strings.ToLower(group), "numa") || editDistance(group, v1alpha1.Group) <= len(v1alpha1.Group)/3
}
