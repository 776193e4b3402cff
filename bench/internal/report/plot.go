package report

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Plots are the files that [Results.WritePlots] writes.
var Plots = []string{"commits.svg", "find.svg", "requests.svg", "growth.svg"}

// colours are those of the stores, in their order: a palette that can also be
// told apart by those who don't see red, or green.
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
	height      = 11 * vg.Centimeter
	legendWidth = 4.6 * vg.Centimeter
	gap         = 0.4 * vg.Centimeter
)

// WritePlots writes the plots to dir. One that has nothing to show is left out.
func (r *Results) WritePlots(dir string, stores []Store) error {
	plots := []func([]Store) (*picture, error){r.plotCommits, r.plotFinds, r.plotRequests, r.plotGrowth}
	for i, name := range Plots {
		path := filepath.Join(dir, name)
		picture, err := plots[i](stores)
		if err == nil && picture == nil {
			err = os.RemoveAll(path)
		} else if err == nil {
			err = picture.write(path)
		}
		if err != nil {
			return fmt.Errorf("plot %s: %w", name, err)
		}
	}
	return nil
}

// A picture is plots side by side, with a legend at the right unless it is nil.
type picture struct {
	plots  []*plot.Plot
	legend *plot.Legend
}

func newLegend() *plot.Legend {
	legend := plot.NewLegend()
	legend.TextStyle.Font = sans(10)
	legend.Top, legend.Left = true, true
	legend.Padding = vg.Millimeter
	legend.ThumbnailWidth = 0.9 * vg.Centimeter
	return &legend
}

func (p *picture) write(path string) error {
	canvas := vgsvg.New(width, height)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	all = draw.Crop(all, gap, -gap, gap, -gap)
	room := all.Size().X
	if p.legend != nil {
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
	if _, err := canvas.WriteTo(file); err != nil {
		file.Close()
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

// A logarithmic axis is a linear one of exponents of ten here: gonum leaves room
// for the label of a [plot.LogScale] where it would be if the axis were linear.

// logarithmic labels the powers of ten on an axis of exponents, and extends it to
// whole ones.
func logarithmic(axis *plot.Axis) {
	axis.Min, axis.Max = math.Floor(axis.Min), math.Ceil(axis.Max)
	var ticks plot.ConstantTicks
	for exponent := axis.Min; exponent <= axis.Max; exponent++ {
		power := math.Pow(10, exponent)
		ticks = append(ticks, plot.Tick{Value: exponent, Label: english.Sprintf("%.*f", max(0, -int(exponent)), power)})
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

// addLine adds a store's line to a plot with two logarithmic axes. The first
// store's is the boldest.
func addLine(p *plot.Plot, stores []Store, i int, points plotter.XYs) (plot.Thumbnailer, error) {
	for i, point := range points {
		points[i] = plotter.XY{X: math.Log10(point.X), Y: math.Log10(point.Y)}
	}
	line, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return nil, err
	}
	line.Color, dots.Color = colours[i%len(colours)], colours[i%len(colours)]
	line.Width, dots.Radius, dots.Shape = 1.2, 2.2, draw.CircleGlyph{}
	if stores[i].Dashed {
		line.Dashes = []vg.Length{4, 3}
	}
	if i == 0 {
		line.Width, dots.Radius = 3.2, 4
	}
	p.Add(line, dots)
	return line, nil
}

// lines adds a line for each store that has points. It returns false if none has.
func (r *Results) lines(pic *picture, p *plot.Plot, stores []Store, points func(store string) plotter.XYs) (bool, error) {
	found := false
	thumbnails := make([]plot.Thumbnailer, len(stores))
	// The first store's line is drawn last, on top of the others.
	for i, store := range slices.Backward(stores) {
		xys := points(store.Name)
		if len(xys) == 0 {
			continue
		}
		thumbnail, err := addLine(p, stores, i, xys)
		if err != nil {
			return false, err
		}
		thumbnails[i], found = thumbnail, true
	}
	if len(pic.plots) == 0 {
		for i, thumbnail := range thumbnails {
			if thumbnail != nil {
				pic.legend.Add(stores[i].label(), thumbnail)
			}
		}
	}
	pic.plots = append(pic.plots, p)
	return found, nil
}

func (r *Results) plotCommits(stores []Store) (*picture, error) {
	goroutines := []int{1, 8, 64, 256}
	p := newPlot(fmt.Sprintf("Commits per second, %v", r.mainSize()), "goroutines that commit", "commits/s (more is better)")
	pic := &picture{legend: newLegend()}
	found, err := r.lines(pic, p, stores, func(store string) (xys plotter.XYs) {
		for _, n := range goroutines {
			y, ok := r.median(key{fmt.Sprintf("Commit/goroutines=%d", n), r.mainSize(), store, unitCommits})
			if ok {
				xys = append(xys, plotter.XY{X: float64(n), Y: y})
			}
		}
		return xys
	})
	if err != nil || !found {
		return nil, err
	}
	logarithmic(&p.Y)
	logarithmicAt(&p.X, goroutines)
	return pic, nil
}

// plotGrowth shows what a commit and a find cost with more and more sessions.
func (r *Results) plotGrowth(stores []Store) (*picture, error) {
	var sizes []size
	var ticks []int
	for _, size := range r.sizes {
		if size.bytes == r.mainSize().bytes {
			sizes, ticks = append(sizes, size), append(ticks, size.sessions)
		}
	}
	if len(sizes) < 2 {
		return nil, nil
	}
	pic := &picture{legend: newLegend()}
	for _, panel := range []struct{ title, workload, label string }{
		{"Commit, 64 goroutines", "Commit/goroutines=64", "µs per commit (less is better)"},
		{"Find, 1 goroutine", "FindHit/goroutines=1", "µs per find (less is better)"},
	} {
		p := newPlot(panel.title, fmt.Sprintf("sessions of %d bytes", r.mainSize().bytes), panel.label)
		found, err := r.lines(pic, p, stores, func(store string) (xys plotter.XYs) {
			for _, size := range sizes {
				y, ok := r.median(key{panel.workload, size, store, unitTime})
				if ok {
					xys = append(xys, plotter.XY{X: float64(size.sessions), Y: y * 1e6})
				}
			}
			return xys
		})
		if err != nil || !found {
			return nil, err
		}
		logarithmic(&p.Y)
		logarithmicAt(&p.X, ticks)
	}
	return pic, nil
}

// rows makes the Y axis of p one with a row for each of the stores, from the top.
// It returns the row of each.
func rows(p *plot.Plot, stores []Store) map[string]float64 {
	row := make(map[string]float64)
	var ticks plot.ConstantTicks
	for i, store := range stores {
		row[store.Name] = float64(len(stores) - 1 - i)
		ticks = append(ticks, plot.Tick{Value: row[store.Name], Label: store.label()})
	}
	p.Y.Tick.Marker = ticks
	p.Y.Tick.Length = 0
	p.Y.Min, p.Y.Max = -0.6, float64(len(stores))-0.4
	return row
}

// measuredWith returns the stores of which a workload has results.
func (r *Results) measuredWith(workload string, stores []Store) (measured []Store) {
	for _, store := range stores {
		if _, ok := r.median(key{workload, r.mainSize(), store.Name, unitP50}); ok {
			measured = append(measured, store)
		}
	}
	return measured
}

func colourOf(stores []Store, store Store) color.Color {
	return colours[slices.Index(stores, store)%len(colours)]
}

func (r *Results) plotFinds(stores []Store) (*picture, error) {
	const alone = "FindHit/goroutines=1"
	measured := r.measuredWith(alone, stores)
	if len(measured) == 0 {
		return nil, nil
	}
	p := newPlot(fmt.Sprintf("Latency of a find, %v", r.mainSize()), "µs (less is better)", "")
	row := rows(p, measured)
	pic := &picture{plots: []*plot.Plot{p}, legend: newLegend()}
	for _, series := range []struct {
		label, workload, unit string
		shape                 draw.GlyphDrawer
		above                 float64 // the middle of the row
	}{
		{"alone, p50", alone, unitP50, draw.CircleGlyph{}, 0.13},
		{"alone, p99", alone, unitP99, draw.RingGlyph{}, 0.13},
		{"while 8 commit, p50", workloadMixed, unitP50, draw.BoxGlyph{}, -0.13},
		{"while 8 commit, p99", workloadMixed, unitP99, draw.SquareGlyph{}, -0.13},
	} {
		found := false
		for _, store := range measured {
			x, ok := r.median(key{series.workload, r.mainSize(), store.Name, series.unit})
			if !ok {
				continue
			}
			points, err := plotter.NewScatter(plotter.XYs{{X: math.Log10(x * 1e6), Y: row[store.Name] + series.above}})
			if err != nil {
				return nil, err
			}
			points.Color, points.Shape, points.Radius = colourOf(stores, store), series.shape, 3
			if store == stores[0] {
				points.Radius = 4.5
			}
			p.Add(points)
			found = true
		}
		if found {
			thumbnail := &plotter.Scatter{GlyphStyle: draw.GlyphStyle{Color: color.Gray{0x55}, Shape: series.shape, Radius: 3.5}}
			pic.legend.Add(series.label, thumbnail)
		}
	}
	logarithmic(&p.X)
	return pic, nil
}

func (r *Results) plotRequests(stores []Store) (*picture, error) {
	measured := r.measuredWith(workloadRequest, stores)
	if len(measured) == 0 {
		return nil, nil
	}
	p := newPlot(fmt.Sprintf("Requests per second by 64 clients, %v", r.mainSize()), "requests/s (more is better)", "")
	row := rows(p, measured)
	for _, store := range measured {
		x, _ := r.median(key{workloadRequest, r.mainSize(), store.Name, unitRequests})
		p99, _ := r.median(key{workloadRequest, r.mainSize(), store.Name, unitP99})
		thickness := 0.35 * vg.Centimeter
		if store == stores[0] {
			thickness *= 1.8
		}
		bar, err := plotter.NewBarChart(plotter.Values{x}, thickness)
		if err != nil {
			return nil, err
		}
		bar.Horizontal, bar.XMin = true, row[store.Name]
		bar.Color, bar.LineStyle.Width = colourOf(stores, store), 0
		label, err := plotter.NewLabels(plotter.XYLabels{
			XYs:    plotter.XYs{{X: x, Y: row[store.Name]}},
			Labels: []string{fmt.Sprintf("%s/s; p99 %s ms", count(x), millis(p99))},
		})
		if err != nil {
			return nil, err
		}
		label.TextStyle[0].Font = sans(9)
		label.TextStyle[0].YAlign = text.YCenter
		label.Offset.X = 1.5 * vg.Millimeter
		p.Add(bar, label)
		p.X.Max = max(p.X.Max, 1.3*x) // room for the label
	}
	p.X.Min = 0
	p.X.Tick.Marker = thousands{}
	return &picture{plots: []*plot.Plot{p}}, nil
}

// thousands labels the default ticks with separators of thousands.
type thousands struct{}

func (thousands) Ticks(least, greatest float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(least, greatest)
	for i := range ticks {
		if !ticks[i].IsMinor() {
			ticks[i].Label = count(ticks[i].Value)
		}
	}
	return ticks
}
