package docs

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/strictyaml"
)

var update = flag.Bool("update", false, "write docs/reference.md")

const reference = "docs/reference.md"

// A tilde stands for a backquote.
const referenceHead = `# Configuration reference

<!-- Generated from the types by make generate. Edit the comments of api/v1alpha1 and internal/proxy/config instead. -->

Every field of manifests and of the proxy's configuration, from the comments of the Go types. [Manifests](manifests.md) and [proxy configuration](proxy-config.md) explain them in context.
~levada render~ prints a manifest with all defaults, ~levada proxy validate~ checks a configuration. Fields marked *Levada* are not part of Numaflow's API. ~levada validate --runnable~
names the fields that this version does not act upon.

Durations are written as ~500ms~, ~10s~ or ~1h30m~. Types that begin with "Kubernetes" are those of the Kubernetes API.

`

// TestReferenceIsGenerated fails if docs/reference.md is not what the types say; make generate writes it.
func TestReferenceIsGenerated(t *testing.T) {
	want := strings.ReplaceAll(referenceHead, "~", "`") + manifestReference(t) + proxyReference(t)
	if *update {
		if err := os.WriteFile(filepath.Join(root, reference), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := read(t, reference); got != want {
		t.Errorf("%s is not what the types say: run make generate", reference)
	}
}

// structType is a struct of a package with its comments.
type structType struct {
	name, doc string
	fields    []structField
}

type structField struct {
	goName, name, doc string
	typ               ast.Expr
	inline            bool
}

// structs reads the exported types of a package, by name; key is the kind of tag that names fields in files. Comments of types that are not structs are there, too.
func structs(t *testing.T, dir, key string) map[string]*structType {
	t.Helper()
	all := map[string]*structType{}
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, dir, entry.Name()), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range file.Decls {
			g, ok := declaration.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				s := spec.(*ast.TypeSpec)
				x := &structType{name: s.Name.Name, doc: comment(s.Doc, g.Doc)}
				all[x.name] = x
				if body, ok := s.Type.(*ast.StructType); ok {
					x.fields = fieldsOf(body, key)
				}
			}
		}
	}
	return all
}

func fieldsOf(body *ast.StructType, key string) (fields []structField) {
	for _, f := range body.Fields.List {
		if f.Tag == nil {
			continue
		}
		text, _ := strconv.Unquote(f.Tag.Value)
		name, options, _ := strings.Cut(reflect.StructTag(text).Get(key), ",")
		inline := strings.Contains(options, "inline")
		if name == "-" || name == "" && !inline {
			continue
		}
		goName := ""
		if len(f.Names) > 0 {
			goName = f.Names[0].Name
		}
		fields = append(fields, structField{goName: goName, name: name, doc: comment(f.Doc, nil), typ: f.Type, inline: inline})
	}
	return fields
}

// comment is a comment as one line, without markers for generators.
func comment(groups ...*ast.CommentGroup) string {
	for _, g := range groups {
		if g == nil {
			continue
		}
		var lines []string
		for line := range strings.Lines(g.Text()) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "+") {
				lines = append(lines, line)
			}
		}
		return strings.ReplaceAll(strings.Join(lines, " "), "|", `\|`)
	}
	return ""
}

// typeName is how the reference writes a type; local is the type's name if it is one of the package.
func typeName(e ast.Expr, of map[string]*structType) (shown, local string) {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X, of)
	case *ast.ArrayType:
		shown, local = typeName(e.Elt, of)
		return "list of " + shown, local
	case *ast.MapType:
		key, _ := typeName(e.Key, of)
		shown, local = typeName(e.Value, of)
		return "map of " + key + " to " + shown, local
	case *ast.SelectorExpr:
		name := e.Sel.Name
		switch name {
		case "Duration":
			return "duration", ""
		case "Quantity":
			return "quantity", ""
		case "IntOrString":
			return "number or percentage", ""
		case "Time":
			return "time", ""
		default:
			return "Kubernetes " + name, ""
		}
	case *ast.Ident:
		switch name := e.Name; {
		case of[name] != nil && of[name].fields != nil:
			return "[" + name + "](#" + strings.ToLower(name) + ")", name
		case of[name] != nil || name == "string":
			return "text", ""
		case name == "bool":
			return "boolean", ""
		case strings.HasPrefix(name, "int"), strings.HasPrefix(name, "uint"), strings.HasPrefix(name, "float"):
			return "number", ""
		default:
			return name, ""
		}
	default:
		return fmt.Sprintf("%T", e), ""
	}
}

// manifestReference has a section for each kind and for each type that it leads to, in the order in which they are met.
func manifestReference(t *testing.T) string {
	types := structs(t, "api/v1alpha1", "json")
	var b strings.Builder
	b.WriteString("## Manifests\n\n`apiVersion: numaflow.numaproj.io/v1alpha1`.\n")
	queue := []string{"PipelineSpec", "MonoVertexSpec", "InterStepBufferServiceSpec", "ServingPipelineSpec", "BufferConfig"}
	kinds := map[string]string{
		"PipelineSpec": "`spec` of the kind Pipeline.", "MonoVertexSpec": "`spec` of the kind MonoVertex.", "InterStepBufferServiceSpec": "`spec` of the kind InterStepBufferService.",
		"ServingPipelineSpec": "`spec` of the kind ServingPipeline.",
	}
	for i := 0; i < len(queue); i++ {
		x := types[queue[i]]
		if x == nil {
			t.Fatalf("api/v1alpha1 has no type %s", queue[i])
		}
		doc := x.doc
		if kind := kinds[x.name]; kind != "" {
			doc = kind + " " + doc
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n| field | type | |\n|---|---|---|\n", x.name, doc)
		for _, f := range expand(x, types) {
			shown, local := typeName(f.typ, types)
			if local != "" && !slices.Contains(queue, local) {
				queue = append(queue, local)
			}
			doc := f.doc
			if doc == "" && local != "" {
				doc, _, _ = strings.Cut(types[local].doc, ". ")
				doc = strings.TrimSuffix(doc, ".") + "."
			}
			if rest, ok := strings.CutPrefix(doc, "Levada: "); ok {
				doc = "*Levada.* " + rest
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, shown, doc)
		}
	}
	return b.String()
}

// expand puts the fields of embedded structs of the package in the place of these. Embedded types of Kubernetes are left out.
func expand(x *structType, types map[string]*structType) (all []structField) {
	for _, f := range x.fields {
		if !f.inline {
			all = append(all, f)
			continue
		}
		e := f.typ
		if star, ok := e.(*ast.StarExpr); ok {
			e = star.X
		}
		if name, ok := e.(*ast.Ident); ok && types[name.Name] != nil {
			all = append(all, expand(types[name.Name], types)...)
		}
	}
	return all
}

// proxyReference is a table of all fields by their path, with defaults.
func proxyReference(t *testing.T) string {
	types := structs(t, "internal/proxy/config", "yaml")
	var b strings.Builder
	b.WriteString("\n## Proxy\n\n`levada proxy --config FILE`. A list is written `[]`.\n\n| field | default | |\n|---|---|---|\n")
	proxyFields(&b, types, defaulted(reflect.TypeFor[config.Config]()), "")
	return b.String()
}

func defaulted(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	if d, ok := v.Interface().(strictyaml.Defaulter); ok {
		d.SetDefaults()
	}
	return v.Elem()
}

func proxyFields(b *strings.Builder, types map[string]*structType, v reflect.Value, path string) {
	x := types[v.Type().Name()]
	if x == nil {
		return
	}
	for _, f := range x.fields {
		value, at := v.FieldByName(f.goName), strings.TrimPrefix(path+"."+f.name, ".")
		below, list := value.Type(), ""
		for below.Kind() == reflect.Pointer || below.Kind() == reflect.Slice {
			if below.Kind() == reflect.Slice {
				list = "[]"
			}
			below = below.Elem()
		}
		doc := f.doc
		if inner := types[below.Name()]; doc == "" && inner != nil {
			doc, _, _ = strings.Cut(inner.doc, ". ")
			doc = strings.TrimSuffix(doc, ".") + "."
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", at, shownDefault(value), doc)
		if below.Kind() == reflect.Struct {
			nested := value
			if value.Type() != below {
				nested = defaulted(below)
			}
			proxyFields(b, types, nested, at+list)
		}
	}
}

var zeroUnits = regexp.MustCompile(`(\D)0s$`)

func shownDefault(v reflect.Value) string {
	text := fmt.Sprint(v.Interface())
	switch {
	case v.Kind() == reflect.Struct || v.Kind() == reflect.Pointer || v.Kind() == reflect.Slice && v.Len() == 0 || text == "":
		return ""
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		return "one"
	case v.Type() == reflect.TypeFor[time.Duration]():
		text = regexp.MustCompile(`h0m$`).ReplaceAllString(zeroUnits.ReplaceAllString(text, "$1"), "h")
	}
	return "`" + strings.Trim(text, "[]") + "`"
}
