package report

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/perf/benchproc"
	"golang.org/x/perf/benchunit"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Plots has the names of the files that [Results.WritePlots] writes.
var Plots = []string{"commits.svg", "find.svg", "requests.svg", "growth.svg"}

// colours are the stores' colours, in the order of the stores. The palette suits readers
// who can't tell red from green.
var colours = []color.RGBA{
	{0xd5, 0x5e, 0x00, 0xff},
	{0x00, 0x72, 0xb2, 0xff},
	{0x00, 0x9e, 0x73, 0xff},
	{0x56, 0xb4, 0xe9, 0xff},
	{0xcc, 0x79, 0xa7, 0xff},
	{0xe6, 0x9f, 0x00, 0xff},
	{0x99, 0x99, 0x99, 0xff},
	{0x00, 0x00, 0x00, 0xff},
	{0x88, 0x22, 0x55, 0xff},
}

const (
	width       = 20 * vg.Centimeter
	height      = 11.6 * vg.Centimeter
	legendWidth = 4.6 * vg.Centimeter
	gap         = 0.4 * vg.Centimeter
)

// WritePlots writes the plots to dir. It removes the file of a plot that has nothing to
// show.
func (r *Results) WritePlots(dir string, stores []Store) error {
	stores = slices.DeleteFunc(slices.Clone(stores), func(s Store) bool { return !s.Plotted })
	plots := []func([]Store) (*picture, error){r.plotCommits, r.plotFinds, r.plotRequests, r.plotGrowth}
	for i, name := range Plots {
		path := filepath.Join(dir, name)
		picture, err := plots[i](stores)
		if err == nil && !picture.drawn {
			err = os.RemoveAll(path)
		} else if err == nil {
			err = picture.write(path, r.caption())
		}
		if err != nil {
			return fmt.Errorf("plot %s: %w", name, err)
		}
	}
	return nil
}

// caption describes the machine, and the numbers in the plots.
func (r *Results) caption() string {
	return fmt.Sprintf("%s, %s cores; %s; Go %s. Medians; the whiskers go from the least to the greatest repetition.",
		r.get("cpu"), r.get("cores"), r.get("disk"), r.get("go"))
}

// A picture has plots side by side, and a legend to their right unless it is empty.
type picture struct {
	plots  []*plot.Plot
	legend plot.Legend
	keys   []string // the labels of the legend
	drawn  bool     // whether the plots show something
}

func newPicture(plots ...*plot.Plot) *picture {
	legend := plot.NewLegend()
	legend.TextStyle.Font = sans(10)
	legend.Top, legend.Left = true, true
	legend.Padding = vg.Millimeter
	legend.ThumbnailWidth = 0.9 * vg.Centimeter
	return &picture{plots: plots, legend: legend}
}

// explain adds a label to the legend, unless the legend already has it.
func (p *picture) explain(label string, thumbnail plot.Thumbnailer) {
	if !slices.Contains(p.keys, label) {
		p.keys = append(p.keys, label)
		p.legend.Add(label, thumbnail)
	}
}

func (p *picture) write(path, caption string) error {
	canvas := vgsvg.New(width, height)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	all = draw.Crop(all, gap, -gap, gap, -gap)
	style := text.Style{Color: color.Gray{0x55}, Font: sans(8), Handler: plot.DefaultTextHandler}
	all.FillText(style, all.Min, caption)
	all = draw.Crop(all, 0, 0, 0.6*vg.Centimeter, 0)
	room := all.Size().X
	if len(p.keys) > 0 {
		room -= legendWidth
		p.legend.Draw(draw.Crop(all, room, 0, 0, -0.8*vg.Centimeter))
	}
	panel := room / vg.Length(len(p.plots))
	for i, plot := range p.plots {
		left := vg.Length(i) * panel
		plot.Draw(draw.Crop(all, left, left+panel-gap-all.Size().X, 0, 0))
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := canvas.WriteTo(file); err != nil {
		return err
	}
	return file.Close()
}

func sans(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font = sans(12)
	p.Title.Padding = 2 * vg.Millimeter
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font = sans(11)
		axis.Tick.Label.Font = sans(10)
	}
	grid := plotter.NewGrid()
	light := color.Gray{0xdd}
	grid.Horizontal.Color, grid.Vertical.Color = light, light
	p.Add(grid)
	return p
}

// Logarithmic axes here are linear axes of exponents of ten. With a [plot.LogScale],
// gonum makes room for the labels where they would be on a linear axis.

// logarithmic extends an axis of exponents to whole powers of ten, and labels them with
// a unit.
func logarithmic(axis *plot.Axis, unit string) {
	axis.Min, axis.Max = math.Floor(axis.Min), math.Ceil(axis.Max)
	var ticks plot.ConstantTicks
	for exponent := axis.Min; exponent <= axis.Max; exponent++ {
		power := math.Pow(10, exponent)
		scale := benchunit.CommonScale([]float64{power * 1.001}, benchunit.Decimal)
		label := fmt.Sprintf("%.0f %s%s", power/scale.Factor, scale.Prefix, unit)
		ticks = append(ticks, plot.Tick{Value: exponent, Label: label})
		for digit := 2; digit <= 9 && exponent < axis.Max; digit++ {
			ticks = append(ticks, plot.Tick{Value: math.Log10(float64(digit) * power)})
		}
	}
	axis.Tick.Marker = ticks
}

// logarithmicAt labels values on an axis of exponents.
func logarithmicAt(axis *plot.Axis, values []int) {
	var ticks plot.ConstantTicks
	for _, value := range values {
		ticks = append(ticks, plot.Tick{Value: math.Log10(float64(value)), Label: count(float64(value))})
	}
	axis.Tick.Marker = ticks
}

// A spread is a median on an axis, and its distances to the lowest and the highest
// repetition.
type spread struct{ median, below, above float64 }

// spreadOf returns the spread of a sample on an axis that shows f of each value.
func (r *Results) spreadOf(k key, f func(float64) float64) (s spread, ok bool) {
	median, ok := r.median(k)
	if !ok {
		return s, false
	}
	s.median = f(median)
	s.below, s.above = s.median-f(slices.Min(r.samples[k])), f(slices.Max(r.samples[k]))-s.median
	return s, true
}

// A curve has the points of a store, with their spreads on the Y axis.
type curve struct {
	plotter.XYs
	plotter.YErrors
}

// addCurves adds a curve of medians for each store to a plot, with a point for each
// value of xs. Both axes are logarithmic.
func (r *Results) addCurves(pic *picture, p *plot.Plot, stores []Store, unit, axisUnit string, xs []int,
	at func(x int) (workload string, size benchproc.Key)) error {
	thumbnails := make([]plot.Thumbnailer, len(stores))
	// The first store's curve is drawn last, on top of the others, and is the boldest.
	for i, store := range slices.Backward(stores) {
		var c curve
		for _, x := range xs {
			workload, size := at(x)
			if s, ok := r.spreadOf(key{workload, size, store.Name, unit}, math.Log10); ok {
				c.XYs = append(c.XYs, plotter.XY{X: math.Log10(float64(x)), Y: s.median})
				c.YErrors = append(c.YErrors, struct{ Low, High float64 }{s.below, s.above})
			}
		}
		if len(c.XYs) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(c)
		if err != nil {
			return err
		}
		bars, err := plotter.NewYErrorBars(c)
		if err != nil {
			return err
		}
		line.Color, dots.Color, bars.Color = colours[i], colours[i], colours[i]
		line.Width, dots.Radius, dots.Shape = 1.2, 2.2, draw.CircleGlyph{}
		if store.Dashed {
			line.Dashes = []vg.Length{4, 3}
		}
		if i == 0 {
			line.Width, dots.Radius = 3.2, 4
		}
		p.Add(line, dots, bars)
		thumbnails[i], pic.drawn = line, true
	}
	for i, thumbnail := range thumbnails {
		if thumbnail != nil {
			pic.explain(stores[i].label(), thumbnail)
		}
	}
	logarithmic(&p.Y, axisUnit)
	logarithmicAt(&p.X, xs)
	return nil
}

func (r *Results) plotCommits(stores []Store) (*picture, error) {
	p := newPlot("Commits per second, "+sizeLabel(r.mainSize()), "goroutines that commit", "commits/s (more is better)")
	pic := newPicture(p)
	return pic, r.addCurves(pic, p, stores, unitCommits, "", []int{1, 8, 64, 256},
		func(goroutines int) (string, benchproc.Key) { return fmt.Sprint("commit ", goroutines), r.mainSize() })
}

// plotGrowth shows how the cost of a commit and of a find grows with the number of
// sessions.
func (r *Results) plotGrowth(stores []Store) (*picture, error) {
	_, mainBytes, _ := parseSize(r.mainSize())
	bySessions := make(map[int]benchproc.Key)
	var xs []int
	for _, size := range r.sizes {
		if sessions, bytes, _ := parseSize(size); bytes == mainBytes && size != r.sweep {
			xs, bySessions[sessions] = append(xs, sessions), size
		}
	}
	pic := newPicture()
	if len(xs) < 2 {
		return pic, nil
	}
	for _, panel := range []struct{ title, workload, label string }{
		{"Commits by 64 goroutines", "commit 64", "time / commits: cost, not latency (less is better)"},
		{"Finds by 1 goroutine", "find 1", "time / finds (less is better)"},
	} {
		p := newPlot(panel.title, fmt.Sprintf("sessions of %d bytes", mainBytes), panel.label)
		pic.plots = append(pic.plots, p)
		err := r.addCurves(pic, p, stores, unitTime, "s", xs, func(sessions int) (string, benchproc.Key) {
			return panel.workload, bySessions[sessions]
		})
		if err != nil {
			return nil, err
		}
	}
	return pic, nil
}

// A series is a mark on the row of each store.
type series struct {
	label, workload, unit string
	shape                 draw.GlyphDrawer
	above                 float64 // the middle of the row
}

// A bar is a point with its spread on the X axis.
type bar struct {
	plotter.XYs
	plotter.XErrors
}

// addRows adds the series to a plot. The Y axis has a row for each store that was
// measured, from the top. The X axis shows f of each value.
func (r *Results) addRows(pic *picture, p *plot.Plot, stores []Store, all []series, f func(float64) float64) error {
	var measured []Store
	for _, store := range stores {
		if _, ok := r.median(key{all[0].workload, r.mainSize(), store.Name, all[0].unit}); ok {
			measured = append(measured, store)
		}
	}
	var ticks plot.ConstantTicks
	for i, store := range measured {
		row := float64(len(measured) - 1 - i)
		ticks = append(ticks, plot.Tick{Value: row, Label: store.label()})
		for _, series := range all {
			s, ok := r.spreadOf(key{series.workload, r.mainSize(), store.Name, series.unit}, f)
			if !ok {
				continue
			}
			b := bar{plotter.XYs{{X: s.median, Y: row + series.above}}, plotter.XErrors{{Low: s.below, High: s.above}}}
			points, err := plotter.NewScatter(b)
			if err != nil {
				return err
			}
			whiskers, err := plotter.NewXErrorBars(b)
			if err != nil {
				return err
			}
			colour := colours[slices.Index(stores, store)]
			points.Color, points.Shape, points.Radius, whiskers.Color = colour, series.shape, 3, colour
			if store == stores[0] {
				points.Radius = 4.5
			}
			p.Add(whiskers, points)
			pic.drawn = true
			if len(all) > 1 {
				pic.explain(series.label, &plotter.Scatter{GlyphStyle: draw.GlyphStyle{Color: color.Gray{0x55}, Shape: series.shape, Radius: 3.5}})
			}
		}
	}
	p.Y.Tick.Marker = ticks
	p.Y.Tick.Length = 0
	p.Y.Min, p.Y.Max = -0.6, float64(len(measured))-0.4
	return nil
}

func (r *Results) plotFinds(stores []Store) (*picture, error) {
	p := newPlot("Latency of a find, "+sizeLabel(r.mainSize()), "time (less is better)", "")
	pic := newPicture(p)
	err := r.addRows(pic, p, stores, []series{
		{"alone, p50", "find 1", unitP50, draw.CircleGlyph{}, 0.22},
		{"alone, p99", "find 1", unitP99, draw.RingGlyph{}, 0.22},
		{"working set, p50", "warm 1", unitP50, draw.PyramidGlyph{}, 0},
		{"working set, p99", "warm 1", unitP99, draw.TriangleGlyph{}, 0},
		{"while 8 commit, p50", "mixed 1", unitP50, draw.BoxGlyph{}, -0.22},
		{"while 8 commit, p99", "mixed 1", unitP99, draw.SquareGlyph{}, -0.22},
	}, math.Log10)
	logarithmic(&p.X, "s")
	return pic, err
}

func (r *Results) plotRequests(stores []Store) (*picture, error) {
	p := newPlot("Requests per second by 64 clients, "+sizeLabel(r.mainSize()), "requests/s (more is better)", "")
	pic := newPicture(p)
	err := r.addRows(pic, p, stores, []series{{"requests/s", "request 64", unitRequests, draw.CircleGlyph{}, 0}},
		func(x float64) float64 { return x })
	p.X.Min = 0
	p.X.Tick.Marker = plot.TickerFunc(func(least, greatest float64) []plot.Tick {
		ticks := plot.DefaultTicks{}.Ticks(least, greatest)
		for i := range ticks {
			ticks[i].Label = count(ticks[i].Value)
		}
		return ticks
	})
	return pic, err
}
